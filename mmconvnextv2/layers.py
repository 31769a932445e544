"""Per-site and per-image layers of ConvNeXt V2 (arXiv 2301.00808, section 3.4 and Algorithm 1).

Every layer here sees sites of shape (B, N, C). Unlike the official sparse GRN, whose norm runs over all visible points
of a batch, statistics are per image; and they are taken in float32 when the input is half precision, because squares
overflow in float16.
"""
from typing import Optional

import torch
from torch import Tensor, nn


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for per-image sums: float32 for half precision, the input's own otherwise."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def response_scale(sites: Tensor, counted: Optional[Tensor] = None, eps: float = 1e-6) -> Tensor:
    """Return GRN's divisively normalised response of each channel, N(G(X)).

    The published formula has the mean over channels in the denominator (Algorithm 1), so a map whose channels respond
    alike has the scale 1.

    Args:
        sites (Tensor): Features of shape (B, N, C).
        counted (Tensor, optional): Bool, (B, N, 1), True where a site takes part in the norm. Defaults to None, all.
        eps (float): Added to the mean over channels. Defaults to 1e-6.

    Returns:
        Tensor: The scale of shape (B, 1, C), in float32 for half-precision input.
    """
    values = sites.to(statistics_dtype(sites.dtype))
    if counted is not None:
        values = torch.where(counted, values, values.new_zeros(()))
    norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)  # (B, 1, C)
    return norm / (norm.mean(dim=-1, keepdim=True) + eps)


class GRN(nn.Module):
    """Global Response Normalization, ``x * N(G(x)) * gamma + beta + x``, over sites of shape (B, N, C).

    Args:
        num_channels (int): C.
        eps (float): See :func:`response_scale`. Defaults to 1e-6.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, sites: Tensor, counted: Optional[Tensor] = None) -> Tensor:
        """Normalise ``sites`` (B, N, C); ``counted`` as in :func:`response_scale`."""
        scale = 1 + self.gamma * response_scale(sites, counted, self.eps)  # (B, 1, C)
        return torch.addcmul(self.beta.to(sites.dtype), sites, scale.to(sites.dtype))


RESPONSE_NORMS = {'GRN': GRN}


def build_response_norm(config: Optional[dict], num_channels: int) -> Optional[nn.Module]:
    """Build a response norm from ``dict(type='GRN', ...)``; None gives None.

    A plain dict is used instead of a registry: inside mmpretrain's scope ``GRN`` would resolve to another class.

    Raises:
        ValueError: If ``type`` is missing or unknown.
    """
    if config is None:
        return None
    arguments = dict(config)
    kind = arguments.pop('type', None)
    if kind not in RESPONSE_NORMS:
        raise ValueError(f"response_norm=dict(type={kind!r}) is unknown: choose from {sorted(RESPONSE_NORMS)}, or None "
                         'for ConvNeXt V1')
    return RESPONSE_NORMS[kind](num_channels, **arguments)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of sites (B, N, C), or of a map (B, C, H, W) through :meth:`forward_map`."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward_map(self, features_BCHW: Tensor) -> Tensor:
        """Normalise each site of a map (B, C, H, W); the memory format becomes channels-last."""
        return self(features_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth that drops a residual branch of whole images, so that hidden sites cannot change the draw.

    Args:
        drop_prob (float): Probability in [0, 1) that an image's branch is dropped.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        """Scale or drop the branch (B, ...) of each image."""
        if not self.training or self.drop_prob == 0:
            return branch
        keep = 1 - self.drop_prob
        kept = branch.new_empty((branch.shape[0], ) + (1, ) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (kept / keep)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:g}'
