"""Backward pass of LayerNorm over sites (B, N, C), from the mean and rstd of ``kernels.depthwise``.

With n = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean_C(g) - n * mean_C(g * n)), dweight = sum dy * n,
dbias = sum dy. ``values`` are x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE, PROGRAMS = 4096, 512  # sites times channels per tile; most programs that share the tiles


@triton.jit
def layer_norm_kernel(
    grad,
    values,
    mean,
    rstd,
    weight,
    output,
    partial,
    num_sites,
    channels,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Process STEPS tiles of TILE sites per program, and store its sums for weight and bias in (2, chunks, C)."""
    ACC: tl.constexpr = partial.dtype.element_ty
    channel = tl.arange(0, BLOCK)[None]
    is_channel = channel < channels
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(ACC)
    weight_total = tl.zeros((TILE, BLOCK), ACC)
    bias_total = tl.zeros((TILE, BLOCK), ACC)
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
        tl.store(output + offsets, grads.to(output.dtype.element_ty), mask=mask)
    place = partial + tl.program_id(0) * channels + tl.arange(0, BLOCK)
    tl.store(place, tl.sum(weight_total, 0), mask=tl.arange(0, BLOCK) < channels)
    tl.store(place + tl.num_programs(0) * channels, tl.sum(bias_total, 0), mask=tl.arange(0, BLOCK) < channels)


def gradients(
    grad: Tensor, values: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the values before LayerNorm, (B, N, C), of its weight and of its bias, (C, )."""
    num_sites, channels = mean.numel(), grad.shape[-1]
    block = triton.next_power_of_2(channels)
    tile = max(SIZE // block, 1)
    steps = triton.next_power_of_2(triton.cdiv(num_sites, tile * PROGRAMS))
    chunks = triton.cdiv(num_sites, tile * steps)
    output, partial = torch.empty_like(values), mean.new_empty(2, chunks, channels)
    with torch.cuda.device_of(grad):  # Triton launches on the current device
        layer_norm_kernel[(chunks,)](
            grad, values, mean, rstd, weight, output, partial, num_sites, channels, STEPS=steps, TILE=tile, BLOCK=block
        )
    grad_weight, grad_bias = partial.sum(1).to(weight.dtype)
    return output, grad_weight.clone(), grad_bias.clone()
