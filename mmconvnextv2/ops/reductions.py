"""Masked and unmasked reductions over sites, accumulated in float32 for half precision."""

import torch
from torch import Tensor

from .dispatch import select_bits

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of a value in bytes


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for per-image sums: float32 for half precision, otherwise the input's dtype."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def fill_masked(sites: Tensor, site_mask: Tensor | None, value: float = 0.0) -> Tensor:
    """Return sites (B, N, C) with ``value`` where ``site_mask`` (B, N, 1) is False; None is a mask of all sites."""
    if site_mask is None:
        return sites
    # Selected, not multiplied: a NaN at a masked site must not spread
    if value == 0 and select_bits(sites):
        return sites if site_mask.all() else _Select.apply(sites, site_mask)
    return torch.where(site_mask, sites, sites.new_full((), value))


def fill_masked_(sites: Tensor, site_mask: Tensor | None) -> Tensor:
    """Do the same to sites that need no gradient; on the CPU in place, and only where a site is masked."""
    if site_mask is None or not select_bits(sites):
        return fill_masked(sites, site_mask)
    if not site_mask.all():  # as a rule, all sites of a chunk count
        kind = BITS[sites.element_size()]
        sites.view(kind).bitwise_and_(-site_mask.to(kind))
    return sites


def _and_bits(sites: Tensor, site_mask: Tensor) -> Tensor:
    # On a CPU, torch.where with one flag per site takes six times as long
    kind = BITS[sites.element_size()]
    return (sites.view(kind) & -site_mask.to(kind)).view(sites.dtype)  # -1 has all bits set, and 0.0 none


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(sites: Tensor, site_mask: Tensor) -> Tensor:
        return _and_bits(sites, site_mask)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return fill_masked(grad, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info, in_dims: tuple[int | None, int | None], sites: Tensor, site_mask: Tensor) -> tuple[Tensor, int]:
        of_sites, of_mask = in_dims
        sites = sites.expand(info.batch_size, *sites.shape) if of_sites is None else sites.movedim(of_sites, 0)
        return fill_masked(sites, site_mask if of_mask is None else site_mask.movedim(of_mask, 0)), 0

    @staticmethod
    def jvp(ctx, tangent: Tensor, _: None) -> Tensor:
        return fill_masked(tangent, *ctx.saved_tensors)


def mean_over_sites(sites: Tensor, site_mask: Tensor | None = None) -> Tensor:
    """Average the sites that count, summed in at least float32: (B, N, C) to (B, 1, C) in the input's dtype."""
    if site_mask is None:
        return sites.mean(1, keepdim=True)
    total = fill_masked(sites, site_mask).sum(1, keepdim=True, dtype=statistics_dtype(sites.dtype))
    return (total / site_mask.sum(1, keepdim=True).clamp(min=1)).to(sites.dtype)  # 0 if no site counts
