"""The paper's measures of features (arXiv 2301.00808, figures 3, 4 and 7), computed exactly while streaming batches.

All take features of shape (B, N, C): B images, N sites, C channels. The C x C cosines of the cosine distance are never
computed, since their sum is the squared length of the sum of the channels' unit vectors.
"""

import torch
from torch import Tensor

from ..ops.reductions import statistics_dtype
from ..utils.errors import UserError
from ..utils.moved import moved_names


def cosine_distance(features: Tensor) -> Tensor:
    """Return the mean of (1 - cos) / 2 over all pairs of channels (i, j), including i = j.

    The distance is 0 if all channels are alike, (1 - 1 / C) / 2 if all are orthogonal, and at most 1 / 2 if no value is
    negative. Two dead channels (zero everywhere) count as alike, a dead and a live one as orthogonal.

    Args:
        features (Tensor): Features of shape (B, N, C).

    Returns:
        Tensor: Distances of shape (B, ) in [0, 1], float64.

    Examples:
        >>> cosine_distance(torch.tensor([[[1., 2.], [0., 0.]], [[1., 0.], [0., 1.]]]))  # alike, then orthogonal
        tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    values = features.to(statistics_dtype(features.dtype))
    norm = torch.linalg.vector_norm(values, dim=1)  # (B, C)
    alive = norm > torch.finfo(norm.dtype).tiny
    inverse = torch.where(alive, norm, 1).reciprocal() * alive
    total = (values @ inverse[..., None]).double()  # (B, N, 1), sum of the channels' unit vectors
    dead = (~alive).sum(1)
    similarity = total.square().sum((1, 2)) + dead.double().square()  # summed over all C * C pairs
    return ((1 - similarity / values.shape[-1] ** 2) / 2).clamp(0, 1)


class RunningStats:
    """Mean and standard deviation of streams of numbers, one stream per block."""

    def __init__(self) -> None:
        self.values: dict[int, list[Tensor]] = {}

    def add(self, index: int, values: Tensor) -> None:
        """Add the numbers (B, ) of one batch for a block."""
        self.values.setdefault(index, []).append(values.cpu())

    def mean_and_deviation(self, index: int) -> tuple[float, float]:
        """Return the mean and the standard deviation of a block's numbers (0 for a single number)."""
        values = torch.cat(self.values[index])
        return values.mean().item(), values.std(correction=0).item()


def count_dead_and_saturated(features: Tensor, tolerance: float = 0.05) -> tuple[Tensor, Tensor]:
    """Find dead and saturated channels. The paper shows such channels but gives no thresholds; these are ours.

    A channel is dead if its largest absolute value is at most ``tolerance`` times the mean of all channels' largest
    values. It is saturated if it is not dead and its standard deviation over sites is at most ``tolerance`` times its
    absolute mean.

    Args:
        features (Tensor): Features of shape (B, N, C).
        tolerance (float): Threshold in (0, 1). Defaults to 0.05.

    Returns:
        tuple[Tensor, Tensor]: Dead and saturated channels, bool (B, C) each.

    Raises:
        ValueError: If the tolerance is out of range.
    """
    if not 0 < tolerance < 1:
        raise UserError(f'--tolerance {tolerance}: expected a number in (0, 1)')
    values = features.double()
    peak = values.abs().amax(1)  # (B, C)
    dead = peak <= tolerance * peak.mean(1, keepdim=True)
    deviation, mean = torch.std_mean(values, dim=1, correction=0)
    return dead, ~dead & (deviation <= tolerance * mean.abs())


class ClassSelectivity:
    """Class selectivity index of each channel (arXiv 1803.06959): how much more it responds to its best class.

    The index is ``(highest - others) / (highest + others)`` of a channel's mean responses to classes, where ``others``
    is the mean over all classes except the highest. It is 0 for a channel that responds equally to all classes or to
    none, and 1 for one that responds to a single class. The response to an image is the mean over sites of the positive
    part, since the index is defined for non-negative responses only and outputs of ConvNeXt blocks can be negative.

    Args:
        num_classes (int): Number of classes, at least 2.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(f'num_classes={num_classes}: selectivity needs two or more classes')
        self.num_classes = num_classes
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, index: int, features: Tensor, labels: Tensor) -> None:
        """Add the features (B, N, C) and labels (B, ) of one batch for a block."""
        response = features.clamp(min=0).mean(1, dtype=torch.float64).cpu()  # (B, C)
        sums = self.sums.setdefault(index, response.new_zeros(self.num_classes, response.shape[1]))
        sums.index_add_(0, labels, response)
        counts = self.counts.setdefault(index, torch.zeros(self.num_classes, dtype=torch.float64))
        counts += torch.bincount(labels, minlength=self.num_classes)

    def indices(self, index: int) -> Tensor:
        """Return the index of each channel of a block, float64 (C, ) in [0, 1].

        Raises:
            ValueError: If a class had no image.
        """
        counts = self.counts[index]
        if not counts.all():
            raise UserError(f'classes {(counts == 0).nonzero()[:, 0].tolist()} had no image')
        means = self.sums[index] / counts[:, None]  # (classes, C)
        highest = means.amax(0)
        others = (means.sum(0) - highest) / (self.num_classes - 1)
        total = highest + others
        return torch.where(total > 0, (highest - others) / total, 0)


__getattr__ = moved_names(__name__)
