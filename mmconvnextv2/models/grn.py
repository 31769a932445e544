"""Global Response Normalization (ConvNeXt V2, arXiv 2301.00808, section 3.4 and Algorithm 1).

Two things to know beside the algorithm. The denominator is the *mean* over channels, as in Algorithm 1, where the text
has their sum: a map whose channels respond alike has the scale 1. And statistics are per image, over the sites that
count; the official sparse code sums over all visible points of the whole batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..ops.reductions import fill_masked, statistics_dtype


class ResponseNorm(nn.Module):
    """The contract of all response norms.

    ``forward(sites, site_mask=None, depthwise=None)`` returns sites of the same shape (B, N, C). Statistics over sites
    take those where ``site_mask`` (B, N, 1) is True; what is returned at other sites is never read. A norm that looks
    at neighbours asks ``depthwise(sites, conv)``, the depthwise convolution of the execution, which knows where they
    are.
    """


class GlobalResponseNorm(ResponseNorm):
    """GRN with its residual, ``gamma * (x * N(G(x))) + beta + x``; the identity at the start, as gamma and beta are 0.

    Args:
        num_channels (int): C.
        eps (float): Added to the mean over channels. Defaults to 1e-6.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, sites: Tensor, site_mask: Tensor | None = None, depthwise: Callable | None = None) -> Tensor:
        """Normalise sites (B, N, C); ``site_mask`` (B, N, 1) is True where a site takes part in the norm.

        Norms of half precision are computed in float32: squares overflow in float16.
        """
        features = fill_masked(sites.to(statistics_dtype(sites.dtype)), site_mask)
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)  # G(X), (B, 1, C)
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)  # N(G(X)), (B, 1, C)
        scale = (1 + self.gamma * response).to(sites.dtype)
        return torch.addcmul(self.beta.to(sites.dtype), sites, scale)
