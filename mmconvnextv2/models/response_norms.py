"""Response norms of the paper's ablations: variants of GRN and its competitors on a block's hidden features.

All operate on sites (B, N, C); the published GRN is in ``grn.py``. Statistics are per image over the sites that count,
except batch norm's, which are over all such sites of the batch. The paper does not give the competitors' settings;
those here are the defaults of torch and of the competitors' papers.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.grn import AGGREGATIONS, NORMALIZATIONS, response_scale
from ..ops.reductions import fill_masked, mean_over_sites, statistics_dtype
from ..utils.errors import UserError
from .grn import GlobalResponseNorm, ResponseNorm
from .layers import LayerNorm


class GRN(GlobalResponseNorm):
    """:class:`~mmconvnextv2.models.grn.GlobalResponseNorm` with the switches of the paper's ablations (table 2).

    Args:
        num_channels (int): Number of channels C.
        eps (float): Constant added to the mean over channels, or to their variance. Defaults to 1e-6.
        aggregation (str): G: ``'L2'``, ``'L1'``, ``'average'``, or ``'none'`` (X * N(X)). Defaults to ``'L2'``.
        normalization (str): N: ``'x/sum'``, ``'1/sum'``, ``'standardize'`` (zero mean, unit variance over channels) or
            ``'none'`` (X * G(X)). Defaults to ``'x/sum'``.
        residual (bool): Whether to add x. If so, gamma is initialised to 0 and the norm is the identity; otherwise
            gamma is initialised to 1. Defaults to True.
        affine (bool): Whether there are parameters gamma and beta. Deprecated: no recipe and no row of the paper lacks
            them. Defaults to True.

    Raises:
        ValueError: If the aggregation or the normalization is unknown.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        aggregation: str = 'L2',
        normalization: str = 'x/sum',
        residual: bool = True,
        affine: bool = True,
    ) -> None:
        super().__init__(num_channels, eps)
        for name, value, known in (
            ('aggregation', aggregation, AGGREGATIONS),
            ('normalization', normalization, NORMALIZATIONS),
        ):
            if value not in known:
                raise UserError(f'{name}={value!r} of the response norm GRN: choose from {list(known)}')
        self.aggregation = aggregation
        self.normalization = normalization
        self.residual = residual
        if not residual:
            nn.init.ones_(self.gamma)
        if not affine:
            warnings.warn('GRN(affine=False) will be removed in 0.4: no recipe uses it', FutureWarning, stacklevel=2)
            self.register_parameter('gamma', None)
            self.register_parameter('beta', None)

    @property
    def is_published(self) -> bool:
        """Whether this is the paper's final GRN, the only one that ``ops.response_mlp`` fuses."""
        chosen = (self.aggregation, self.normalization, self.residual, self.gamma is not None)
        return type(self) is GRN and chosen == ('L2', 'x/sum', True, True)

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise sites (B, N, C); ``site_mask`` is that of :func:`response_scale`."""
        if self.is_published:
            return super().forward(sites, site_mask)
        scale = response_scale(sites, site_mask, self.eps, self.aggregation, self.normalization)
        if self.gamma is not None:
            scale = self.gamma * scale
        if self.residual:
            scale = 1 + scale  # (B, 1, C)
        if self.beta is None:
            return sites * scale.to(sites.dtype)
        return torch.addcmul(self.beta.to(sites.dtype), sites, scale.to(sites.dtype))

    def extra_repr(self) -> str:
        return f'aggregation={self.aggregation}, normalization={self.normalization}, residual={self.residual}'


class LocalResponseNorm(ResponseNorm):
    """LRN of AlexNet over ``size`` neighbouring channels of each site: ``x / (k + alpha * mean(x^2))^beta``.

    Args:
        num_channels (int): Number of channels C, unused: there are no parameters.
        size (int): Number of neighbouring channels. Defaults to 5.
        alpha (float): Factor of the mean of squares. Defaults to 1e-4.
        beta (float): Exponent. Defaults to 0.75.
        k (float): Constant added to the scaled mean of squares. Defaults to 1.
    """

    def __init__(
        self, num_channels: int, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = dict(size=size, alpha=alpha, beta=beta, k=k)

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise each site of (B, N, C) separately."""
        channels_first = sites.to(statistics_dtype(sites.dtype)).transpose(1, 2)  # (B, C, N)
        return F.local_response_norm(channels_first, **self.settings).transpose(1, 2).to(sites.dtype)


class BatchNorm(ResponseNorm):
    """Batch norm over the sites that count in all images of a batch, also for the running statistics.

    Args:
        num_channels (int): Number of channels C.
        eps (float): Constant added to the variance. Defaults to 1e-5.
        momentum (float): Weight of a batch in the running statistics. Defaults to 0.1.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        # A child, not a base class, so that conversion to SyncBatchNorm and back finds it
        self.batch_norm = nn.BatchNorm1d(num_channels, eps, momentum)

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise sites (B, N, C); those outside of the mask become zero."""
        if site_mask is None:
            return self.batch_norm(sites.flatten(0, 1)).view_as(sites)
        rows = (site_mask.squeeze(-1),)
        return torch.zeros_like(sites).index_put(rows, self.batch_norm(sites[rows]).to(sites.dtype))


class ChannelNorm(LayerNorm, ResponseNorm):
    """LayerNorm over the channels of each site.

    Args:
        num_channels (int): Number of channels C.
        eps (float): Constant added to the variance. Defaults to 1e-6.
    """

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise each site of (B, N, C) separately."""
        return super().forward(sites)


class Bottleneck(nn.Sequential):
    """Two linears of a channel gate, with ``num_channels / ratio`` channels between them, at least one."""

    def __init__(self, num_channels: int, ratio: int) -> None:
        narrow = max(num_channels // ratio, 1)
        super().__init__(nn.Linear(num_channels, narrow), nn.ReLU(), nn.Linear(narrow, num_channels))


class SqueezeExcitation(ResponseNorm):
    """SE (arXiv 1709.01507): a gate in (0, 1) per channel, computed from the means of all channels.

    Args:
        num_channels (int): Number of channels C.
        ratio (int): Reduction ratio of the bottleneck. Defaults to 16, with which base has the paper's 109 M
            parameters.
    """

    def __init__(self, num_channels: int, ratio: int = 16) -> None:
        super().__init__()
        self.mlp = Bottleneck(num_channels, ratio)

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Gate sites (B, N, C)."""
        return sites * self.mlp(mean_over_sites(sites, site_mask)).sigmoid()


class CBAM(ResponseNorm):
    """CBAM (arXiv 1807.06521): a gate per channel, then a gate per site.

    The channel gate is computed from means and maxima over sites, the site gate from means and maxima over channels in
    a 7x7 neighbourhood.

    Args:
        num_channels (int): Number of channels C.
        ratio (int): Reduction ratio of the bottleneck. Defaults to 16, with which base has the paper's 109 M
            parameters.
    """

    def __init__(self, num_channels: int, ratio: int = 16) -> None:
        super().__init__()
        self.mlp = Bottleneck(num_channels, ratio)
        # Two depthwise channels whose outputs are summed: a 7x7 convolution from two channels to one
        self.spatial = nn.Conv2d(2, 2, 7, padding=3, groups=2, bias=False)

    def forward(self, sites: Tensor, site_mask: Tensor | None, depthwise: Callable) -> Tensor:
        """Gate sites (B, N, C); ``depthwise`` is that of :class:`ResponseNorm`."""
        mean = mean_over_sites(sites, site_mask)
        highest = fill_masked(sites, site_mask, -torch.inf).amax(1, keepdim=True)
        highest = fill_masked(highest, None if site_mask is None else site_mask.any(1, keepdim=True))
        sites = sites * (self.mlp(mean) + self.mlp(highest)).sigmoid()
        pooled = torch.stack([sites.mean(-1), sites.amax(-1)], dim=-1)  # (B, N, 2)
        return sites * depthwise(pooled, self.spatial).sum(-1, keepdim=True).sigmoid()


RESPONSE_NORMS = {
    'GRN': GRN,
    'LRN': LocalResponseNorm,
    'BN': BatchNorm,
    'LN': ChannelNorm,
    'SE': SqueezeExcitation,
    'CBAM': CBAM,
}


def build_response_norm(config: dict | None, num_channels: int) -> nn.Module | None:
    """Build a response norm from ``dict(type='GRN', ...)``; None gives None.

    Types are looked up in a plain dict, not a registry: in mmpretrain's scope ``GRN`` would resolve to another class.

    Raises:
        ValueError: If ``type`` is missing or unknown, or does not take one of the arguments.
    """
    if config is None:
        return None
    arguments = dict(config)
    kind = arguments.pop('type', None)
    if kind not in RESPONSE_NORMS:
        raise UserError(
            f'response_norm=dict(type={kind!r}) is unknown: choose from {sorted(RESPONSE_NORMS)}, or None '
            'for ConvNeXt V1'
        )
    known = list(inspect.signature(RESPONSE_NORMS[kind]).parameters)[1:]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UserError(
            f'response_norm=dict(type={kind!r}, ...) does not know {", ".join(unknown)}: choose from {known}'
        )
    return RESPONSE_NORMS[kind](num_channels, **arguments)
