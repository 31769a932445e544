"""Global Response Normalization (ConvNeXt V2, arXiv 2301.00808, section 3.4 and Algorithm 1).

Two choices where the sources differ. The denominator is the *mean* over channels, as in Algorithm 1, while the text has
the sum; if all channels respond equally, the response is 1. Statistics are per image, over the sites that count; the
official sparse code sums over all visible points of the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.reductions import fill_masked, statistics_dtype


class ResponseNorm(nn.Module):
    """Base class and contract of all response norms.

    ``forward(sites, site_mask=None, depthwise=None)`` returns sites of the same shape (B, N, C). Statistics over sites
    include only those where ``site_mask`` (B, N, 1) is True; outputs at other sites are never read. A norm that reads
    neighbours calls ``depthwise(sites, conv)``, the execution's depthwise convolution, since only the execution knows
    where neighbours are.
    """


class GlobalResponseNorm(ResponseNorm):
    """GRN with its residual, ``gamma * (x * N(G(x))) + beta + x``.

    It starts as the identity, since gamma and beta are initialised to 0.

    Args:
        num_channels (int): Number of channels C.
        eps (float): Constant added to the mean over channels. Defaults to 1e-6.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise sites (B, N, C); ``site_mask`` (B, N, 1) is True where a site takes part in the norm.

        For half precision, norms are computed in float32, since squares overflow in float16.
        """
        features = fill_masked(sites.to(statistics_dtype(sites.dtype)), site_mask)
        return self.apply_norm(sites, torch.linalg.vector_norm(features, dim=1, keepdim=True))

    def apply_norm(self, sites: Tensor, norm: Tensor) -> Tensor:
        """Normalise sites (B, N, C) by norms G(X), (B, 1, C), of these sites or of a larger image."""
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)  # N(G(X)), (B, 1, C)
        scale = (1 + self.gamma * response).to(sites.dtype)
        return torch.addcmul(self.beta.to(sites.dtype), sites, scale)
