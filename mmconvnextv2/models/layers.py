"""Small layers of ConvNeXt V2 over sites (B, N, C); GRN is in ``grn.py``, its competitors in ``response_norms.py``."""

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of sites (B, N, C)."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)


class DropPath(nn.Module):
    """Stochastic depth with one random decision per image, so the random numbers do not depend on masked sites.

    Args:
        drop_prob (float): Probability in [0, 1) that an image's branch is dropped.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def draw(self, branch: Tensor) -> Tensor | None:
        """Return the factor of each image's branch (B, ...), of shape (B, 1, ...); None if all are 1."""
        if not self.training or self.drop_prob == 0:
            return None
        keep = 1 - self.drop_prob
        return branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep).div_(keep)

    def forward(self, branch: Tensor) -> Tensor:
        """Scale or drop the branch (B, ...) of each image."""
        kept = self.draw(branch)
        return branch if kept is None else branch * kept

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:g}'
