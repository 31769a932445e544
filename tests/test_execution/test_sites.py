"""Drop path, black images, averages and state of the executions: what ``test_invariants.py`` leaves open."""

import pytest
import torch
from sparse_reference import sparse_reference
from test_invariants import CELLS, EXECUTIONS, LISTS, assert_same, values_and_gradients
from torch import nn


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize('execution', EXECUTIONS)
@pytest.mark.parametrize('with_cp', (False, True))
def test_drop_path_drops_the_same_images(make_backbone, images, execution, with_cp):
    """With one seed, drop path drops the same images' branches in every execution, also when recomputed."""
    results = []
    for name, recompute in (('masked', False), (execution, with_cp)):
        model = make_backbone(drop_path_rate=0.6, with_cp=recompute).train()
        torch.manual_seed(6)
        results.append(values_and_gradients(model, images, CELLS, name))
    assert_same(*results)
    still = make_backbone().train()(images, CELLS, execution)
    assert not torch.allclose(results[0][3], still[3])


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_visible_black_pixels_are_visible(make_backbone, images, execution):
    """A visible cell of zeros stays a visible site: it has features, and its neighbours see them."""
    model = make_backbone()
    images[0, :, :32, :32] = 0  # cell 0, visible
    maps = model(images, CELLS, execution)
    without = model(images[:1], torch.tensor([[2, 5]]), execution)
    assert maps[0][0, :, :8, :8].abs().sum(0).min() > 0
    assert (maps[3][0, :, 0, 2] - without[3][0, :, 0, 2]).abs().max() > 1e-3
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected = sparse_reference(weights, model.depths, images[:1], LISTS[:1])[3]
    torch.testing.assert_close(maps[3][:1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_averages_count_visible_sites(make_backbone, images, execution):
    """With gap_before_final_norm the mean runs over visible sites only: norm(mean) of the map before the norm."""
    arguments = dict(out_indices=(3,))
    vectors = make_backbone(gap_before_final_norm=True, **arguments)(images, CELLS, execution)[0]
    model = make_backbone(**arguments)
    norm, model.norm3 = model.norm3, nn.Identity()
    features = model(images, CELLS, execution)[0].flatten(2)  # (B, C, 6)
    means = torch.stack([one[:, cells].mean(1) for one, cells in zip(features, CELLS)])
    torch.testing.assert_close(vectors, norm(means), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('execution', ('dense', 'leaky', *EXECUTIONS))
def test_executions_own_no_state(make_backbone, images, execution):
    """A forward and backward leave keys, shapes and values of the state dict as they were."""
    model = make_backbone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    maps = model(images, None if execution == 'dense' else CELLS, execution)
    sum(one.sum() for one in maps).backward()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
