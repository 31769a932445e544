"""Masked and unmasked reductions over sites, accumulated in float32 for half precision."""

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for per-image sums: float32 for half precision, otherwise the input's dtype."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def fill_masked(sites: Tensor, site_mask: Tensor | None, value: float = 0.0) -> Tensor:
    """Return sites (B, N, C) with ``value`` where ``site_mask`` (B, N, 1) is False; None is a mask of all sites."""
    # Selected, not multiplied: a NaN at a masked site must not spread
    return sites if site_mask is None else torch.where(site_mask, sites, sites.new_full((), value))


def mean_over_sites(sites: Tensor, site_mask: Tensor | None = None) -> Tensor:
    """Average the sites that count, summed in at least float32: (B, N, C) to (B, 1, C) in the input's dtype."""
    if site_mask is None:
        return sites.mean(1, keepdim=True)
    total = fill_masked(sites, site_mask).sum(1, keepdim=True, dtype=statistics_dtype(sites.dtype))
    return (total / site_mask.sum(1, keepdim=True)).to(sites.dtype)
