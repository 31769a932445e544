"""Depthwise convolution over packed sites on the CPU, in windows around large cells or in maps for small ones.

With a 7x7 kernel, a cell of 8x8 sites needs a window of 14x14, but one of 4x4 sites already a window of 10x10, so small
cells would gather mostly border. Only visible sites are kept for the backward pass, never a map. Suffixes as in
:mod:`mmconvnextv2.ops.grid`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autocast import cast_for_autocast, without_autocast
from .cells import append_zero_row, gather_nograd, scatter_nograd, take_rows
from .depthwise_cpu import (
    bias_gradient,
    chunk_size,
    depthwise_reference,
    depthwise_weight_grad,
    flip_kernel,
    input_gradient,
    weight_gradient,
)
from .dispatch import use_windows
from .grid import Grid


def depthwise_packed(sites: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    """Convolve each channel of packed sites (B, N, C) with a kernel (C, 1, k, k), k odd; returns (B, N, C)."""
    sites, weight, bias = cast_for_autocast(sites, weight, bias)
    with without_autocast(sites.device):
        return _PackedDepthwise.apply(sites, weight, bias, grid)


class _PackedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sites: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
        ctx.save_for_backward(sites, weight)
        ctx.grid = grid
        return _convolve(sites, weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        sites, weight = ctx.saved_tensors
        needs_sites, needs_weight, needs_bias, _ = ctx.needs_input_grad
        backward = _backward_of_windows if use_windows(ctx.grid) else _backward_of_maps
        gradients = backward(sites, weight, grad, ctx.grid, needs_sites, needs_weight)
        return *gradients, bias_gradient(grad) if needs_bias else None, None


def _convolve(sites: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    if not use_windows(grid):
        return gather_nograd(depthwise_reference(scatter_nograd(sites, grid), weight, bias), grid)
    cells = sites.new_empty(sites.shape).view(-1, grid.patch, grid.patch, sites.shape[2])  # (B * K, p, p, C)
    # Windows already hold the border, so the convolution is not padded
    for windows, chunk in _windows(sites, grid, weight.shape[-1] // 2):
        cells[chunk] = F.conv2d(windows.permute(0, 3, 1, 2), weight, bias, groups=len(weight)).permute(0, 2, 3, 1)
    return cells.view(sites.shape)


def _windows(sites: Tensor, grid: Grid, radius: int, cells_last: bool = False) -> Iterator[tuple[Tensor, slice]]:
    """Yield windows around chunks of the B * K visible cells, and each chunk's slice.

    Windows have s x s sites, s = p + 2r, and are zero where there is no visible site: (n, s, s, C), or (s, s, n, C)
    with ``cells_last``.
    """
    index, rows = grid.index().windows(radius), append_zero_row(sites)
    count = chunk_size(index.shape[1] ** 2 * sites.shape[2])
    for start in range(0, len(index), count):
        chunk = slice(start, start + count)
        yield take_rows(rows, index[chunk].permute(1, 2, 0) if cells_last else index[chunk]), chunk


def _backward_of_maps(
    sites: Tensor, weight: Tensor, grad: Tensor, grid: Grid, needs_sites: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of sites (B, N, C) and weight that are needed, computed in maps of sites and ``grad``."""
    grad_map = scatter_nograd(grad, grid)
    grad_sites = grad_weight = None
    if needs_sites:
        grad_sites = gather_nograd(input_gradient(grad_map, weight), grid)
    if needs_weight:
        sites_map = scatter_nograd(sites, grid)
        grad_weight = weight_gradient(sites_map.permute(0, 2, 3, 1), grad_map.permute(0, 2, 3, 1), weight.shape[-1])
    return grad_sites, grad_weight


def _backward_of_windows(
    sites: Tensor, weight: Tensor, grad: Tensor, grid: Grid, needs_sites: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of sites (B, N, C) and weight that are needed, computed in windows around cells."""
    side = weight.shape[-1]
    grad_sites = grad_weight = None
    if needs_sites:
        # A site's gradient comes from the outputs around it, of which only visible ones exist: the same convolution
        grad_sites = _convolve(grad, flip_kernel(weight), None, grid)
    if needs_weight:
        tiles = grad.reshape(-1, grid.patch, grid.patch, grad.shape[2])  # (B * K, p, p, C)
        windows = _windows(sites, grid, side // 2, cells_last=True)
        grad_weight = depthwise_weight_grad(((window, tiles[chunk]) for window, chunk in windows), grad, side, (0, 0))
    return grad_sites, grad_weight
