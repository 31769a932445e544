"""LayerNorm over sites (B, N, C), with parameters in any dtype.

With n = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean_C(g) - n * mean_C(g * n)), dweight = sum dy * n,
dbias = sum dy. ``values`` are x, the output of a convolution, whose bias has the gradient sum dx.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import statistics_dtype
from .launch import Launch, sized
from .sums import cdiv, next_power_of_2

SIZE, PROGRAMS = 1024, 1024  # sites times channels per tile of 4 warps; most programs that share the tiles


@triton.jit
def forward_kernel(
    values, weight, bias, normed, mean, rstd, num_sites, eps,
    channels: tl.constexpr, KEEP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise TILE sites per program. torch's kernel for CUDA needs parameters in the dtype of the values."""
    ACC: tl.constexpr = mean.dtype.element_ty
    channel = tl.arange(0, BLOCK)[None]
    is_channel = channel < channels
    site = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    mask, offsets = (site < num_sites) & is_channel, site * channels + channel
    x = tl.load(values + offsets, mask=mask, other=0.0).to(ACC)
    centre = tl.sum(x, 1)[:, None] / channels
    x = tl.where(mask, x - centre, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(x * x, 1)[:, None] / channels + eps)
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(ACC)
    shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(ACC)
    tl.store(normed + offsets, (x * inverse * scale + shift).to(normed.dtype.element_ty), mask=mask)
    if KEEP:
        tl.store(mean + site, centre, mask=site < num_sites)
        tl.store(rstd + site, inverse, mask=site < num_sites)


@triton.jit
def backward_kernel(
    grad, values, mean, rstd, weight, output, partial, num_sites,
    channels: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Process STEPS tiles of TILE sites per program, and store its sums of dweight, dbias and dx in (chunks, 3, C)."""
    ACC: tl.constexpr = partial.dtype.element_ty
    channel = tl.arange(0, BLOCK)[None]
    is_channel = channel < channels
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(ACC)
    weight_total = tl.zeros((TILE, BLOCK), ACC)
    bias_total = tl.zeros((TILE, BLOCK), ACC)
    input_total = tl.zeros((TILE, BLOCK), ACC)
    for step in range(STEPS):
        site = (tl.program_id(0).to(tl.int64) * STEPS + step) * TILE + tl.arange(0, TILE)[:, None]
        exists = site < num_sites
        mask, offsets = exists & is_channel, site * channels + channel
        centre, inverse = tl.load(mean + site, mask=exists, other=0.0), tl.load(rstd + site, mask=exists, other=0.0)
        normal = (tl.load(values + offsets, mask=mask, other=0.0).to(ACC) - centre) * inverse
        grads = tl.load(grad + offsets, mask=mask, other=0.0).to(ACC)
        weight_total += grads * normal
        bias_total += grads
        grads *= scale
        # Channels beyond C have zero gradients, so they add nothing to either sum
        along = tl.sum(grads * normal, 1)[:, None] / channels
        grads = (grads - tl.sum(grads, 1)[:, None] / channels - normal * along) * inverse
        grads = tl.where(mask, grads, 0.0)
        input_total += grads
        tl.store(output + offsets, grads.to(output.dtype.element_ty), mask=mask)
    place = partial + tl.program_id(0) * 3 * channels + tl.arange(0, BLOCK)
    is_channel = tl.arange(0, BLOCK) < channels
    tl.store(place, tl.sum(weight_total, 0), mask=is_channel)
    tl.store(place + channels, tl.sum(bias_total, 0), mask=is_channel)
    tl.store(place + 2 * channels, tl.sum(input_total, 0), mask=is_channel)


def tile_of(channels: int) -> tuple[int, int, int]:
    """Return sites and channels per tile, and warps: 8 values per thread."""
    block = next_power_of_2(channels)
    return max(SIZE // block, 1), block, max(4 * block // SIZE, 4)


@sized
def _normalise(num_sites: int, channels: int, eps: float, keep: bool) -> Launch:
    tile, block, warps = tile_of(channels)
    constants = dict(channels=channels, KEEP=keep, TILE=tile, BLOCK=block, num_warps=warps)
    return Launch(forward_kernel, (cdiv(num_sites, tile),), (num_sites, eps), **constants)


@sized
def _differentiate(num_sites: int, channels: int) -> Launch:
    tile, block, warps = tile_of(channels)
    steps = next_power_of_2(cdiv(num_sites, tile * PROGRAMS))
    constants = dict(channels=channels, STEPS=steps, TILE=tile, BLOCK=block, num_warps=warps)
    return Launch(backward_kernel, (cdiv(num_sites, tile * steps),), (num_sites,), **constants)


def forward(
    values: Tensor, weight: Tensor, bias: Tensor, eps: float, keep: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised values (B, N, C), mean and rstd (B, N) in the dtype of sums; the last two are empty unless
    ``keep`` is set."""
    batch, num_sites, channels = values.shape
    kept, kind = (batch, num_sites) if keep else (0, 0), statistics_dtype(values.dtype)
    normed, mean, rstd = (
        torch.empty_like(values),
        values.new_empty(kept, dtype=kind),
        values.new_empty(kept, dtype=kind),
    )
    _normalise(batch * num_sites, channels, eps, keep)(values, weight, bias, normed, mean, rstd)
    return normed, mean, rstd


def gradients(grad: Tensor, values: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the values before LayerNorm, (B, N, C), and partial sums (chunks, 3, C) of the gradients
    of its weight, of its bias, and of the values."""
    channels = grad.shape[-1]
    launch = _differentiate(mean.numel(), channels)
    output, partial = torch.empty_like(values), mean.new_empty(launch.grid[0], 3, channels)
    launch(grad, values, mean, rstd, weight, output, partial)
    return output, partial
