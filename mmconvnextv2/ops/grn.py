"""GRN's formula (arXiv 2301.00808, Algorithm 1), the paper's ablations, and the derivative for fused operations.

Letters: x (B, N, C) features, n = norm / mean norm the response (B, 1, C), s = 1 + gamma * n the scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import in_blocks
from .reductions import fill_masked, fill_masked_, mean_over_sites, statistics_dtype

# From sites (B, N, C), zero where they do not count, and their mask to responses (B, 1, C)
AGGREGATIONS = {
    'L2': lambda values, site_mask: torch.linalg.vector_norm(values, dim=1, keepdim=True),
    'L1': lambda values, site_mask: torch.linalg.vector_norm(values, 1, dim=1, keepdim=True),
    'average': mean_over_sites,
    'none': lambda values, site_mask: values,  # a response per site, (B, N, C)
}
# By the mean over channels: table 2 has the sum, which differs by a factor that gamma absorbs
NORMALIZATIONS = {
    'x/sum': lambda response, eps: response / (response.mean(dim=-1, keepdim=True) + eps),
    '1/sum': lambda response, eps: 1 / (response.mean(dim=-1, keepdim=True) + eps),
    'standardize': lambda response, eps: F.layer_norm(response, response.shape[-1:], eps=eps),
    'none': lambda response, eps: response,
}
response_of = NORMALIZATIONS['x/sum']  # from norms (B, 1, C) and eps to responses (B, 1, C)
SQUARES = 2**18  # values squared at a time on the CPU; with fewer, call overhead dominates


def response_scale(
    sites: Tensor,
    site_mask: Tensor | None = None,
    eps: float = 1e-6,
    aggregation: str = 'L2',
    normalization: str = 'x/sum',
) -> Tensor:
    """Return the normalised response of each channel, N(G(X)); by default that of GRN.

    The denominator is the mean over channels (Algorithm 1), so a map whose channels respond equally has the response 1.

    Args:
        sites (Tensor): Features of shape (B, N, C).
        site_mask (Tensor, optional): Mask that is True where a site takes part in the norm; bool, (B, N, 1). Defaults
            to None, all sites.
        eps (float): Constant added to the mean over channels, or to their variance. Defaults to 1e-6.
        aggregation (str): G, a key of ``AGGREGATIONS``. Defaults to ``'L2'``.
        normalization (str): N, a key of ``NORMALIZATIONS``. Defaults to ``'x/sum'``.

    Returns:
        Tensor: The response of shape (B, 1, C), in float32 for half-precision input. The last dimension is 1 for the
        normalization ``'1/sum'``; the middle one is N for the aggregation ``'none'``.
    """
    values = fill_masked(sites.to(statistics_dtype(sites.dtype)), site_mask)
    return NORMALIZATIONS[normalization](AGGREGATIONS[aggregation](values, site_mask), eps)


def channel_norm(features: Tensor, site_mask: Tensor | None) -> Tensor:
    """Return the L2 norm of each channel over the sites that count: (B, N, C) to (B, 1, C), in the statistics dtype.

    On the CPU it runs over few sites at a time, whose squares stay in the caches; torch's own norm is several times
    slower.
    """
    kind = statistics_dtype(features.dtype)
    if not in_blocks(features):
        return torch.linalg.vector_norm(fill_masked(features, site_mask), dim=1, keepdim=True, dtype=kind)
    total: Tensor | int = 0
    num_sites = max(SQUARES * features.shape[1] // max(features.numel(), 1), 1)
    for start in range(0, max(features.shape[1], 1), num_sites):
        part = slice(start, start + num_sites)
        squares = features[:, part].to(kind).square()
        counted = None if site_mask is None else site_mask[:, part]
        total = total + fill_masked_(squares, counted).sum(1, keepdim=True)
    assert isinstance(total, Tensor)  # there is at least one part, which is empty if there are no sites
    return total.sqrt()


def scale_backward(grad_scale: Tensor, norm: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Differentiate the scale ``1 + gamma * norm / (mean norm + eps)``, all (B, 1, C).

    Returns:
        tuple[Tensor]: The gradient of gamma, (C, ), and the factor (B, 1, C) by which features enter their own gradient
        at sites that count: the derivative of a norm is ``x / norm``, taken as 0 if a channel is 0 at every site.
    """
    # n_j = norm_j / m with m = mean norm + eps, hence dn_j / dnorm_i = (delta_ij - n_j / C) / m: the gradient of a norm
    # is that of its response minus the mean over channels of gradient times response, divided by m
    response = response_of(norm, eps)
    grad_response = grad_scale * gamma
    mean = norm.mean(-1, keepdim=True) + eps
    grad_norm = (grad_response - (grad_response * response).mean(-1, keepdim=True)) / mean
    factor = torch.where(norm > 0, grad_norm / norm, norm.new_zeros(()))
    return (grad_scale * response).sum((0, 1)).to(gamma.dtype), factor


def add_product(grad: Tensor, features: Tensor, factor: Tensor) -> Tensor:
    """Add ``features * factor`` to ``grad``; both of shape (B, N, C) are overwritten, ``factor`` is (B, 1, C).

    The factor shrinks with the number of sites and underflows in float16.
    """
    if grad.dtype == torch.float16:
        return grad.add_(features.mul_(factor))  # the product is computed in the factor's float32
    return grad.addcmul_(features, factor.to(grad.dtype))
