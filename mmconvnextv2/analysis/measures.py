"""The paper's measures of features (arXiv 2301.00808, figures 3, 4 and 7), each streaming over batches and exact.

All take features of shape (B, N, C): B images, N sites, C channels. Against the formula of the cosine distance over
all pairs of channels, C x C cosines are never made: their sum is the squared length of the sum of unit vectors.
"""

import torch
from torch import Tensor

from ..ops.reductions import statistics_dtype
from ..utils.errors import UserError


def cosine_distance(features: Tensor) -> Tensor:
    """Return the mean over all pairs of channels (i, j), i = j among them, of (1 - cos) / 2.

    It is 0 when all channels are alike, (1 - 1 / C) / 2 when all are orthogonal, and never above 1 / 2 when no value is
    negative. Two dead channels (zero everywhere) are alike, a dead one is orthogonal to any other.

    Args:
        features (Tensor): (B, N, C).

    Returns:
        Tensor: Float64, (B, ), in [0, 1].

    Examples:
        >>> cosine_distance(torch.tensor([[[1., 2.], [0., 0.]], [[1., 0.], [0., 1.]]]))  # alike, then orthogonal
        tensor([0.0000, 0.2500], dtype=torch.float64)
    """
    values = features.to(statistics_dtype(features.dtype))
    norm = torch.linalg.vector_norm(values, dim=1)  # (B, C)
    alive = norm > torch.finfo(norm.dtype).tiny
    inverse = torch.where(alive, norm, 1).reciprocal() * alive
    total = (values @ inverse[..., None]).double()  # (B, N, 1), the sum of all channels' unit vectors
    dead = (~alive).sum(1)
    similarity = total.square().sum((1, 2)) + dead.double().square()  # of all C * C pairs
    return ((1 - similarity / values.shape[-1] ** 2) / 2).clamp(0, 1)


class RunningStats:
    """Mean and deviation of a stream of numbers, one stream a block."""

    def __init__(self) -> None:
        self.values: dict[int, list[Tensor]] = {}

    def add(self, index: int, values: Tensor) -> None:
        """Take the numbers (B, ) of a block's batch."""
        self.values.setdefault(index, []).append(values.cpu())

    def mean_and_deviation(self, index: int) -> tuple[float, float]:
        """Return the mean of all numbers of a block, and their deviation (0 for one)."""
        values = torch.cat(self.values[index])
        return values.mean().item(), values.std(correction=0).item()


def count_dead_and_saturated(features: Tensor, tolerance: float = 0.05) -> tuple[Tensor, Tensor]:
    """Find channels that show nothing. The paper shows them and gives no thresholds; these are ours.

    A channel is dead where its largest absolute value is at most ``tolerance`` times the mean of the channels' largest
    ones; saturated where it is not dead and its deviation over sites is at most ``tolerance`` times its absolute mean.

    Args:
        features (Tensor): (B, N, C).
        tolerance (float): In (0, 1). Defaults to 0.05.

    Returns:
        tuple[Tensor, Tensor]: Bool, (B, C) each: dead, saturated.

    Raises:
        ValueError: If the tolerance is out of its range.
    """
    if not 0 < tolerance < 1:
        raise UserError(f'--tolerance {tolerance}: expected a share in (0, 1)')
    values = features.double()
    peak = values.abs().amax(1)  # (B, C)
    dead = peak <= tolerance * peak.mean(1, keepdim=True)
    deviation, mean = torch.std_mean(values, dim=1, correction=0)
    return dead, ~dead & (deviation <= tolerance * mean.abs())


class ClassSelectivity:
    """The class selectivity index of each channel (arXiv 1803.06959): how much more it answers to its best class.

    ``(highest - others) / (highest + others)`` of the mean responses to classes, ``others`` the mean over all but the
    highest. 0: it answers to all classes alike; 1: to one class alone; channels that never answer have 0. A response is
    an image's mean over sites of what is positive: the index is defined for responses that are not negative, which
    outputs of ConvNeXt blocks can be.

    Args:
        num_classes (int): Two or more.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(f'num_classes={num_classes}: selectivity needs two or more classes')
        self.num_classes = num_classes
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, index: int, features: Tensor, labels: Tensor) -> None:
        """Take the features (B, N, C) and classes (B, ) of a block's batch."""
        response = features.clamp(min=0).mean(1, dtype=torch.float64).cpu()  # (B, C)
        sums = self.sums.setdefault(index, response.new_zeros(self.num_classes, response.shape[1]))
        sums.index_add_(0, labels, response)
        counts = self.counts.setdefault(index, torch.zeros(self.num_classes, dtype=torch.float64))
        counts += torch.bincount(labels, minlength=self.num_classes)

    def indices(self, index: int) -> Tensor:
        """Return the index of each channel of a block: float64, (C, ), in [0, 1].

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
