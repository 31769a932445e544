"""Depthwise convolution on the CPU with a hand-written backward pass; stride 1, odd kernel, size-keeping padding.

oneDNN's weight gradient is several times slower than its forward, and is computed a second time for the bias. Here both
gradients are forward convolutions. With output y and its gradient dy:

    dw[i, j] = sum_{r, c} x[r + i - k // 2, c + j - k // 2] dy[r, c]    x convolved with dy as the kernel
    dx       = dy convolved with w rotated by 180 degrees

The sum over r and c is split into tiles: a grouped convolution has one group per tile and channel, whose input is the
window around the tile.
Letters: B images, C channels, H x W sites, k the kernel's side, N tiles of t x u sites.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autocast import cast_for_autocast, without_autocast
from .reductions import statistics_dtype

ROWS = 32  # largest number of rows of a tile, which is as wide as the map
VALUES = 2**19  # values of the windows that are correlated at a time, so that they stay in the caches


def depthwise_map(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel of a channels-last map; equal to :func:`depthwise_reference`.

    Args:
        features (Tensor): Map of shape (B, C, H, W).
        weight (Tensor): Kernel of shape (C, 1, k, k), k odd.
        bias (Tensor, optional): Bias of shape (C, ).

    Returns:
        Tensor: Map of shape (B, C, H, W), channels-last.

    Raises:
        RuntimeError: By torch, if a second derivative is requested; :func:`depthwise_reference` supports it.
    """
    features, weight, bias = cast_for_autocast(features, weight, bias)
    with without_autocast(features.device):
        return _Depthwise.apply(features, weight, bias)


def depthwise_reference(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute :func:`depthwise_map` with torch's convolution; supports derivatives of any order."""
    return F.conv2d(features, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient (B, C, H, W) of the input, given that of the output."""
    return depthwise_reference(grad, flip_kernel(weight), None)


def flip_kernel(weight: Tensor) -> Tensor:
    """Return the kernel (C, 1, k, k) that maps the gradient of an output to that of its input."""
    return weight.flip(2, 3)


def weight_gradient(features: Tensor, grad: Tensor, side: int) -> Tensor:
    """Return the gradient (C, 1, k, k) of the weight, given a map and its output's gradient, both (B, H, W, C)."""
    # _strips pads rows, since a strip has neighbours in its map; the convolution pads columns
    return depthwise_weight_grad(_strips(features, grad, side // 2), grad, side, (0, side // 2))


def _strips(features: Tensor, grad: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows and tiles, as wide as the map, of several images or of part of one."""
    height = features.shape[1]
    count = chunk_size(features[:1].numel()) if height <= ROWS else 1
    for start in range(0, len(features), count):
        images = slice(start, start + count)
        inputs = features[images].permute(1, 2, 0, 3)  # (H, W, N, C)
        for top in range(0, height, ROWS):
            bottom = min(top + ROWS, height)
            # Negative padding crops: a strip in the middle of a map gets its neighbours' rows, the others zeros
            yield F.pad(inputs, (0,) * 6 + (radius - top, bottom + radius - height)), grad[images, top:bottom]


def chunk_size(values: int) -> int:
    """Return how many windows, of ``values`` values each, to correlate at a time."""
    return max(VALUES // max(values, 1), 1)


def depthwise_weight_grad(
    pairs: Iterable[tuple[Tensor, Tensor]], grad: Tensor, side: int, padding: tuple[int, int]
) -> Tensor:
    """Correlate windows of the input with tiles of the output's gradient, and sum over all tiles.

    Args:
        pairs (Iterable[tuple[Tensor]]): Windows (t + k - 1, u + k - 1, N, C), which hold each tile's sites and those
            within (k - 1) / 2 of it, and tiles (N, t, u, C) of the output's gradient.
        grad (Tensor): Whole gradient (..., C), for its dtype, device and number of channels.
        side (int): Side k of the kernel.
        padding (tuple[int]): Rows and columns of zeros that windows lack on each side.

    Returns:
        Tensor: Gradient of shape (C, 1, k, k).
    """
    channels = grad.shape[-1]
    total = grad.new_zeros(side, side, channels, dtype=statistics_dtype(grad.dtype))
    for windows, tiles in pairs:
        inputs = windows.flatten(2)[None].permute(0, 3, 1, 2)  # (1, N * C, t + k - 1, u + k - 1), channels-last
        kernels = tiles.permute(0, 3, 1, 2).reshape(-1, 1, *tiles.shape[1:3])  # (N * C, 1, t, u)
        products = F.conv2d(inputs, kernels, padding=padding, groups=len(kernels))[0]  # (N * C, k, k)
        # Each tile's product is in the input's dtype; the sum over tiles is in at least float32
        total += products.permute(1, 2, 0).unflatten(2, (-1, channels)).sum(2, dtype=total.dtype)
    return total.permute(2, 0, 1)[:, None].to(grad.dtype, memory_format=torch.contiguous_format)


def bias_gradient(grad_sites: Tensor) -> Tensor:
    """Sum the gradient (..., C) over all sites."""
    return grad_sites.flatten(0, -2).sum(0)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(features, weight)
        return depthwise_reference(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        grad_features = input_gradient(grad, weight) if ctx.needs_input_grad[0] else None
        features, grad = features.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
        grad_weight = weight_gradient(features, grad, weight.shape[-1]) if ctx.needs_input_grad[1] else None
        return grad_features, grad_weight, bias_gradient(grad) if ctx.needs_input_grad[2] else None
