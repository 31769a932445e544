"""The measures of features are their formulas: by hand on tiny maps, and by plain loops."""

import math

import pytest
import torch

from mmconvnextv2.analysis.measures import ClassSelectivity, RunningStats, cosine_distance, count_dead_and_saturated


def features_of(*channels):
    """One image whose channels are given as lists over sites: (1, N, C)."""
    return torch.tensor(channels, dtype=torch.float64).T[None]


def distance_by_loops(features):
    """The formula over all C * C pairs of channels of one image (N, C)."""
    channels, total = features.numpy().T, 0.0
    for one in channels:
        for other in channels:
            lengths = math.sqrt(one @ one) * math.sqrt(other @ other)
            cosine = one @ other / lengths if lengths else float(not one.any() and not other.any())
            total += (1 - cosine) / 2
    return total / len(channels) ** 2


@pytest.mark.parametrize(
    'channels, distance',
    [
        (([1, 2, 3], [2, 4, 6], [10, 20, 30]), 0.0),  # collapsed: all alike except for their strength
        (([5, 5],), 0.0),
        (([1, 0, 0], [0, 2, 0], [0, 0, 3]), 1 / 3),  # orthogonal: 6 of 9 pairs at 1 / 2
        (([1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]), 3 / 8),  # orthogonal: 12 of 16 pairs at 1 / 2
        (([1, 2], [-1, -2]), 1 / 2),  # opposite: 2 of 4 pairs at 1
        (([3, 4], [4, 3]), 2 * (1 - 24 / 25) / 2 / 4),
        (([1, 0], [0, 0], [0, 0]), 4 * 0.5 / 9),  # two dead channels are alike, and orthogonal to the living one
        (([0, 0], [0, 0]), 0.0),
    ],
)
def test_distance_by_hand(channels, distance):
    """Distances of maps of one to four channels equal those computed by hand."""
    assert cosine_distance(features_of(*channels)).item() == pytest.approx(distance, abs=1e-15)
    assert distance_by_loops(features_of(*channels)[0]) == pytest.approx(distance, abs=1e-15)


@pytest.mark.parametrize('num_channels', (2, 64, 1024))
def test_orthogonal_channels_tend_to_one_half(num_channels):
    """C orthogonal channels have the distance (1 - 1 / C) / 2: a channel is like itself, 1 / 2 in the limit."""
    orthogonal = torch.eye(num_channels, dtype=torch.float64)[None] * torch.arange(1, num_channels + 1)
    assert cosine_distance(orthogonal).item() == pytest.approx(0.5 - 0.5 / num_channels, abs=1e-12)
    assert cosine_distance(orthogonal.float()).item() == pytest.approx(0.5 - 0.5 / num_channels, abs=1e-6)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_distance_equals_loops(dtype, tolerance):
    """A batch of random images, some channels dead, has the distances of the loop, image by image; in half
    precision too, where squares overflow."""
    features = torch.randn(3, 10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 200
    features = features.where(torch.arange(12) % 5 != 0, features.abs() + 300)
    features[0, :, :2], features[2] = 0, features[2].abs()
    expected = [distance_by_loops(image) for image in features.to(dtype).double()]
    ours = cosine_distance(features.to(dtype))
    assert ours.dtype == torch.float64 and len(set(ours.tolist())) == 3
    assert ours.tolist() == pytest.approx(expected, abs=tolerance)


def test_distance_does_not_see_strength():
    """Multiplying channels by positive numbers changes nothing: what GRN's scale alone does is not what is measured."""
    features = torch.randn(2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scaled = features * torch.logspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(cosine_distance(scaled), cosine_distance(features), rtol=1e-12, atol=0)


def test_moments_of_a_stream():
    """Mean and deviation do not depend on how a stream is cut into batches, and blocks do not mix."""
    stats, values = RunningStats(), torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    for batch in values.split(3):
        stats.add(0, batch)
        stats.add(1, -batch)
    assert stats.mean_and_deviation(0) == pytest.approx((4.0, math.sqrt((9 + 4 + 0 + 25) / 4)))
    assert stats.mean_and_deviation(1)[0] == -4


def test_dead_and_saturated_channels():
    """Of five channels one answers nowhere, one much too weakly, one is constant, one nearly so, one is alive; a map of
    zeros is all dead."""
    features = features_of([0, 0, 0, 0], [0.1, 0, 0, -0.1], [8, 8, 8, 8], [-8, -8.1, -8, -7.9], [0, 9, 0, 1])
    dead, saturated = count_dead_and_saturated(features)
    assert dead.tolist() == [[True, True, False, False, False]]
    assert saturated.tolist() == [[False, False, True, True, False]]
    dead, saturated = count_dead_and_saturated(features, 0.001)
    assert dead.tolist() == [[True] + [False] * 4] and saturated.tolist() == [[False, False, True, False, False]]
    assert count_dead_and_saturated(torch.zeros(1, 4, 3))[0].all()


def test_selectivity_by_hand():
    """Three classes, batches of mixed classes: means of positive responses, then (highest - others) / (highest +
    others), by hand; a channel that never answers has 0."""
    selectivity = ClassSelectivity(3)
    # responses (images of class 0, 0, 1, 2) x channels; two sites each, whose mean they are
    response = torch.tensor([[1.0, 4.0, 0.0, 2.0], [3.0, 4.0, 0.0, -7.0], [0.0, 4.0, 0.0, 1.0], [1.0, 4.0, -2.0, 1.0]])
    features = torch.stack([response + 0.5 * (response > 0), response - 0.5 * (response > 0)], dim=1)
    selectivity.add(7, features[[0, 3]], torch.tensor([0, 2]))
    selectivity.add(7, features[[2, 1]], torch.tensor([1, 0]))
    # Means of classes: 2, 0, 1, hence (2 - .5) / 2.5; then 4, 4, 4; then never positive; then 1, 1, 1 without the -7
    assert selectivity.indices(7).tolist() == pytest.approx([0.6, 0.0, 0.0, 0.0])


def test_selectivity_of_one_class_alone():
    """A channel that answers to a single class has the index 1."""
    selectivity = ClassSelectivity(2)
    selectivity.add(0, torch.tensor([[[0.0, 1.0]], [[5.0, 1.0]]]), torch.tensor([0, 1]))
    assert selectivity.indices(0).tolist() == [1.0, 0.0]


def test_selectivity_needs_every_class():
    """One class, or a class without an image, is refused."""
    with pytest.raises(ValueError, match='num_classes=1: .*two or more'):
        ClassSelectivity(1)
    selectivity = ClassSelectivity(3)
    selectivity.add(0, torch.ones(1, 2, 4), torch.tensor([1]))
    with pytest.raises(ValueError, match=r'classes \[0, 2\] had no image'):
        selectivity.indices(0)
