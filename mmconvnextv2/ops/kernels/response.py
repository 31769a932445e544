"""Kernels of ``ops.response_mlp_triton`` for GRN's response: small tensors, which many launches would dominate.

Letters as in ``ops.response_mlp``. Partial sums (B, chunks, D) of squares and of ds come from ``kernels.gelu``, or of
ds from ``product_kernel``. One program serves an image, since means run over channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import statistics_dtype
from .launch import Launch, sized
from .sums import cdiv, steps_of, sum_chunks

BLOCK = 128  # channels per step of a program
PRODUCT = dict(IMAGES=8, ROWS=16, BLOCK=32)  # images, rows and channels per step of the folded product


@triton.jit
def response_kernel(
    partial, gamma, norm, scale, chunks, channels, eps,
    BLOCKS: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store G = sqrt(sum of squares) and s = 1 + gamma * G / (mean G + eps)."""
    ACC: tl.constexpr = partial.dtype.element_ty
    image = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), ACC)
    for block in range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        is_channel = channel < channels
        source = partial + image * chunks * channels
        value = tl.sqrt(sum_chunks(source, channels, chunks, channel, is_channel, ACC, STEPS, TILE))
        tl.store(norm + image * channels + channel, value, mask=is_channel)
        total += value
    mean = tl.sum(total, 0) / channels + eps
    tl.debug_barrier()  # norms are read again
    for block in range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        is_channel = channel < channels
        value = tl.load(norm + image * channels + channel, mask=is_channel, other=0.0)
        factor = tl.load(gamma + channel, mask=is_channel, other=0.0).to(ACC)
        tl.store(scale + image * channels + channel, 1 + factor * (value / mean), mask=is_channel)


@triton.jit
def response_backward_kernel(
    partial, norm, gamma, factor, grad_gamma, chunks, channels, eps,
    BLOCKS: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store f = dG / G and each image's gradient of gamma, from partial sums of ds."""
    ACC: tl.constexpr = partial.dtype.element_ty
    image = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), ACC)
    for block in range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(norm + image * channels + channel, mask=channel < channels, other=0.0)
    mean = tl.sum(total, 0) / channels + eps
    total = tl.zeros((BLOCK,), ACC)
    for block in range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        is_channel = channel < channels
        place = image * channels + channel
        grad_scale = sum_chunks(
            partial + image * chunks * channels, channels, chunks, channel, is_channel, ACC, STEPS, TILE
        )
        response = tl.load(norm + place, mask=is_channel, other=0.0) / mean
        grad_response = grad_scale * tl.load(gamma + channel, mask=is_channel, other=0.0).to(ACC)
        tl.store(grad_gamma + place, grad_scale * response, mask=is_channel)
        tl.store(factor + place, grad_response, mask=is_channel)
        total += grad_response * response
    along = tl.sum(total, 0) / channels
    tl.debug_barrier()
    for block in range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        is_channel = channel < channels
        place = image * channels + channel
        value = tl.load(norm + place, mask=is_channel, other=0.0)
        grad_norm = (tl.load(factor + place, mask=is_channel, other=0.0) - along) / mean
        tl.store(factor + place, tl.where(value > 0, grad_norm / tl.where(value > 0, value, 1.0), 0.0), mask=is_channel)


@triton.jit
def product_kernel(
    product, weight, scale, grad_bias, beta, grad_weight, partial, batch, rows, channels,
    STEPS: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From dy' a per image (B, C, D): the second weight's gradient (C, D), and partial sums (B, tiles, D) of ds."""
    ACC: tl.constexpr = partial.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    mask = (row < rows)[:, None] & is_channel[None]
    offsets = row[:, None] * channels + channel[None]
    factor = tl.load(weight + offsets, mask=mask, other=0.0).to(ACC)
    total = tl.zeros((ROWS, BLOCK), ACC)
    for step in range(STEPS):
        image = (step * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
        exists = image < batch
        pointers = product + image[:, None, None] * rows * channels + offsets[None]
        values = tl.load(pointers, mask=exists[:, None, None] & mask[None], other=0.0).to(ACC)
        place, there = image[:, None] * channels + channel[None], exists[:, None] & is_channel[None]
        s = tl.load(scale + place, mask=there, other=0.0)
        total += tl.sum(values * s[:, None], 0)
        line = (image * tl.num_programs(0) + tl.program_id(0))[:, None] * channels + channel[None]
        tl.store(partial + line, tl.sum(values * factor[None], 1), mask=there)
    # beta enters through the offset b2 + W2 beta: its share of dW2 is db2 beta'
    outer = tl.load(grad_bias + row, mask=row < rows, other=0.0).to(ACC)[:, None]
    total += outer * tl.load(beta + channel, mask=is_channel, other=0.0).to(ACC)[None]
    tl.store(grad_weight + offsets, total.to(grad_weight.dtype.element_ty), mask=mask)


@triton.jit
def sum_kernel(
    first, second, third, first_sum, second_sum, third_sum, first_count, second_count, third_count, channels,
    STEPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the rows of two or three tensors (count, D) into vectors (D, )."""
    ACC: tl.constexpr = first.dtype.element_ty
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    if tl.program_id(0) == 0:
        total = sum_chunks(first, channels, first_count, channel, is_channel, ACC, STEPS, TILE)
        tl.store(first_sum + channel, total.to(first_sum.dtype.element_ty), mask=is_channel)
    elif tl.program_id(0) == 1:
        total = sum_chunks(second, channels, second_count, channel, is_channel, ACC, STEPS, TILE)
        tl.store(second_sum + channel, total.to(second_sum.dtype.element_ty), mask=is_channel)
    else:
        if third is not None:
            total = sum_chunks(third, channels, third_count, channel, is_channel, ACC, STEPS, TILE)
            tl.store(third_sum + channel, total.to(third_sum.dtype.element_ty), mask=is_channel)


@sized
def _per_image(kernel: Any, batch: int, chunks: int, channels: int, eps: float) -> Launch:
    constants = dict(BLOCKS=cdiv(channels, BLOCK), BLOCK=BLOCK, **steps_of(chunks))
    return Launch(kernel, (batch,), (chunks, channels, eps), **constants)


@sized
def _products(batch: int, rows: int, channels: int) -> Launch:
    grid = cdiv(rows, PRODUCT['ROWS']), cdiv(channels, PRODUCT['BLOCK'])
    return Launch(product_kernel, grid, (batch, rows, channels), STEPS=cdiv(batch, PRODUCT['IMAGES']), **PRODUCT)


@sized
def _sums(channels: int, *counts: int) -> Launch:
    grid, counts = (len(counts), cdiv(channels, BLOCK)), (*counts, 0)[:3]
    return Launch(sum_kernel, grid, (*counts, channels), BLOCK=BLOCK, **steps_of(*counts))


def response(partial: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return norms G and scales s, (B, 1, D), from partial sums of squares (B, chunks, D)."""
    batch, chunks, channels = partial.shape
    norm, scale = partial.new_empty(batch, 1, channels), partial.new_empty(batch, 1, channels)
    _per_image(response_kernel, batch, chunks, channels, eps)(partial, gamma, norm, scale)
    return norm, scale


def response_backward(partial: Tensor, norm: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the factor f (B, 1, D), and the gradients of gamma by image (B, D), from partial sums of ds."""
    batch, chunks, channels = partial.shape
    factor, grad_gamma = partial.new_empty(batch, 1, channels), partial.new_empty(batch, channels)
    _per_image(response_backward_kernel, batch, chunks, channels, eps)(partial, norm, gamma, factor, grad_gamma)
    return factor, grad_gamma


def folded_gradients(
    product: Tensor, weight: Tensor, scale: Tensor, grad_bias: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the second weight's gradient (C, D) in its dtype, and partial sums of ds, from dy' a (B, C, D)."""
    batch, rows, channels = product.shape
    tiles = cdiv(rows, PRODUCT['ROWS'])
    grad_weight = torch.empty_like(weight)
    partial = product.new_empty(batch, tiles, channels, dtype=statistics_dtype(product.dtype))
    _products(batch, rows, channels)(product, weight, scale, grad_bias, beta, grad_weight, partial)
    return grad_weight, partial


def sum_rows(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Return the sums (D, ) of two or three tensors (..., D) in ``dtype``, by one kernel."""
    channels = tensors[0].shape[-1]
    sums = [one.new_empty(channels, dtype=dtype) for one in tensors]
    missing = [None] * (3 - len(tensors))
    _sums(channels, *[one.numel() // channels for one in tensors])(*tensors, *missing, *sums, *missing)
    return sums
