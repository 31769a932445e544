"""Weights of the losses of several targets: learned from their uncertainty (Kendall et al. 2018), or fixed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..utils.errors import UserError


class UncertaintyWeights(nn.Module):
    """Sum of exp(-s) L + s over losses L with a learned log-variance s each.

    This is the form of MMEarth's code. That of Kendall, Gal and Cipolla (arXiv 1705.07115, equations 7 to 10) halves s,
    and L of values, which shifts the optimal s and scales the total.

    Args:
        names (Sequence[str]): Names of the losses.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(len(names)))

    def forward(self, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total, a scalar, and the weights (T, ) of losses (T, ).

        Args:
            losses (Tensor): Losses, zero where there is none.
            present (Tensor): Bool, False for losses that take no part: they add nothing, not even s.
        """
        scale = torch.exp(-self.log_variances)
        total = torch.where(present, scale * losses + self.log_variances, 0).sum()
        return total, scale.detach()


class FixedWeights(nn.Module):
    """Sum of losses times fixed weights.

    Args:
        names (Sequence[str]): Names of the losses.
        weights (dict[str, float], optional): Weights by name, 1 for others. Defaults to None.

    Raises:
        ValueError: If a name is unknown, or a weight negative.
    """

    weights: Tensor

    def __init__(self, names: Sequence[str], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        weights = weights or {}
        unknown = [name for name in weights if name not in names]
        if unknown or any(weight < 0 for weight in weights.values()):
            raise UserError(f'weighting={weights}: expected weights of 0 or more for some of {list(names)}')
        self.register_buffer('weights', torch.tensor([float(weights.get(name, 1)) for name in names]), persistent=False)

    def forward(self, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total and the weights, as :meth:`UncertaintyWeights.forward`."""
        return torch.where(present, self.weights * losses, 0).sum(), self.weights


def build_loss_weights(weighting: str | dict[str, float], names: Sequence[str]) -> nn.Module:
    """Build the weights from ``'uncertainty'``, ``'equal'`` or fixed weights by name.

    Raises:
        ValueError: If the setting is unknown.
    """
    if isinstance(weighting, dict):
        return FixedWeights(names, dict(weighting))
    if weighting == 'equal':
        return FixedWeights(names)
    if weighting != 'uncertainty':
        raise UserError(f"weighting={weighting!r}: expected 'uncertainty', 'equal' or a dict of weights by target")
    return UncertaintyWeights(names)
