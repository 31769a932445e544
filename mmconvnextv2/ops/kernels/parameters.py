"""Kernel of ``ops.block`` that lays out a block's parameters for its other kernels and products, by one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reductions import statistics_dtype
from .launch import Launch, sized
from .sums import cdiv

SIZE = 1024  # elements of each tensor per program


@triton.jit
def cast(source, target, index, count):
    """Copy the elements of an index that are below ``count``, in the target's dtype."""
    mask = index < count
    tl.store(target + index, tl.load(source + index, mask=mask).to(target.dtype.element_ty), mask=mask)


@triton.jit
def lay_out_kernel(
    weight, weight1, bias1, weight2, bias2, taps, cast1, cast_bias1, cast2, cast_bias2, channels, hidden,
    TAPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Store a depthwise weight (C, TAPS) as taps (TAPS, C), and cast the parameters of two linears."""
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    mask = index < TAPS * channels
    value = tl.load(weight + index % channels * TAPS + index // channels, mask=mask)
    tl.store(taps + index, value.to(taps.dtype.element_ty), mask=mask)
    if cast1 is not None:
        cast(weight1, cast1, index, channels * hidden)
        cast(bias1, cast_bias1, index, hidden)
    if cast2 is not None:
        cast(weight2, cast2, index, channels * hidden)
        cast(bias2, cast_bias2, index, channels)


@sized
def _layout(channels: int, hidden: int, taps: int, casts: bool) -> Launch:
    elements = max(taps * channels, channels * hidden if casts else 0)
    return Launch(lay_out_kernel, (cdiv(elements, SIZE),), (channels, hidden), TAPS=taps, SIZE=SIZE)


def lay_out(
    weight: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, dtype: torch.dtype, second: bool
) -> tuple[Tensor, ...]:
    """Return taps (k * k, C) in the dtype of sums, and both linears' weights and biases in ``dtype``.

    Tensors that are in ``dtype`` are returned themselves; so are those of the second linear unless ``second``.
    """
    hidden, channels = weight1.shape
    side = weight.shape[-1]
    taps = weight.new_empty(side * side, channels, dtype=statistics_dtype(weight.dtype))
    first, last, casts = (weight1, bias1), (weight2, bias2), weight1.dtype != dtype
    if casts:
        first = weight1.new_empty(hidden, channels, dtype=dtype), bias1.new_empty(hidden, dtype=dtype)
        if second:
            last = weight2.new_empty(channels, hidden, dtype=dtype), bias2.new_empty(channels, dtype=dtype)
    given = [one.contiguous() for one in (weight, weight1, bias1, weight2, bias2)]
    written = (*(first if casts else (None, None)), *(last if casts and second else (None, None)))
    _layout(channels, hidden, side * side, casts)(*given, taps, *written)
    return taps, *first, *last
