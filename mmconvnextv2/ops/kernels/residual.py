"""Kernels of ``ops.block`` at the end of a block: the sum of its input and its branch, and the branch's gradient.

``kept`` (B, 1, 1) is drop path's factor of each image's branch; None means 1. A row is a site, as in ``kernels.gelu``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import statistics_dtype
from .gelu import find_tile, first_row, launch_pass, store_partial
from .launch import Launch, sized
from .sums import cdiv

SIZE = 1024  # elements per program


@triton.jit
def add_kernel(sites, branch, kept, output, elements, ACC: tl.constexpr, SIZE: tl.constexpr):
    """Store sites + branch * kept; ``elements`` is their number per image."""
    image = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    place, mask = image * elements + offset, offset < elements
    value = tl.load(branch + place, mask=mask, other=0.0).to(ACC)
    if kept is not None:
        value *= tl.load(kept + image).to(ACC)
    value += tl.load(sites + place, mask=mask, other=0.0).to(ACC)
    tl.store(output + place, value.to(output.dtype.element_ty), mask=mask)


@triton.jit
def branch_gradient_kernel(
    grad, kept, output, partial, num_sites, channels, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """Store grad * kept and, for the last bias, partial sums of it over sites, (B, chunks, C)."""
    ACC: tl.constexpr = partial.dtype.element_ty
    first = first_row(num_sites, ROWS) * channels
    grad += first
    output += first
    total = tl.zeros((TILE, BLOCK), ACC)
    for step in range(ROWS // TILE):
        row, is_site, offsets, mask = find_tile(step, num_sites, channels, ROWS, TILE, BLOCK)
        value = tl.load(grad + offsets, mask=mask, other=0.0).to(ACC)
        if kept is not None:
            value *= tl.load(kept + tl.program_id(1)).to(ACC)
        tl.store(output + offsets, value.to(output.dtype.element_ty), mask=mask)
        total += value
    store_partial(total, partial, channels, BLOCK)


@sized
def _addition(batch: int, elements: int, double: bool) -> Launch:
    kind = tl.float64 if double else tl.float32
    return Launch(add_kernel, (cdiv(elements, SIZE), batch), (elements,), ACC=kind, SIZE=SIZE)


def add(sites: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    """Return sites + branch * kept in the wider dtype of sites and branch, (B, N, C)."""
    output = torch.empty_like(sites, dtype=torch.promote_types(sites.dtype, branch.dtype))
    batch, num_sites, channels = sites.shape
    _addition(batch, num_sites * channels, output.dtype == torch.float64)(sites, branch, kept, output)
    return output


def branch_gradient(grad: Tensor, kept: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the branch's gradient (B, N, C) in ``dtype``, and partial sums (B, chunks, C) of it."""
    output = torch.empty_like(grad, dtype=dtype)
    return output, launch_pass(branch_gradient_kernel, grad, statistics_dtype(dtype), kept, output)
