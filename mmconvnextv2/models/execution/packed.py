"""Visit only the visible sites: K cells of p x p sites an image, N = K * p * p, with p = 8, 4, 2, 1 by stage.

Site order: cells in ascending raster order, then raster order inside the cell. Pointwise work and per-image sums touch
visible sites only and need nothing from this file. Downsampling never leaves its cell. Only the depthwise convolution
needs neighbours: on the CPU it finds them in windows around large cells, and in a map that is zero elsewhere around
small ones; as a Triton kernel through an index of cells.
Suffixes: B images, K cells, p sites along a cell's side, h and w cells along the picture's sides.
"""
from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...ops.autocast import cast_for_autocast, without_autocast
from ...ops.depthwise import (at_a_time, bias_gradient, correlate, depthwise_reference, input_gradient, is_faster,
                              mirrored, weight_gradient)
from ...ops.depthwise_triton import Geometry, depthwise_norm_sites, depthwise_sites, places_of, serves
from ...ops.dispatch import is_watched, uses_kernels
from .base import CELL, Execution, Grid, map_to_sites
from .cells import gather, lay_out_map, pick, rows_at, rows_of, scatter, with_rows, with_zero

SMALL = 4  # sites along the side of cells whose windows are no faster than maps


def windows_of_cells(sites: Tensor,
                     grid: Grid,
                     radius: int,
                     cells_last: bool = False) -> Iterator[Tuple[Tensor, slice]]:
    """Yield windows of s x s sites, s = p + 2r, around some of the B * K visible cells, zero where there is no site,
    and which cells they are: (n, s, s, C), or (s, s, n, C) with ``cells_last``, and a slice."""
    index, rows = rows_of(grid).of_windows(radius), with_zero(sites)
    count = at_a_time(index.shape[1]**2 * sites.shape[2])
    for start in range(0, len(index), count):
        some = slice(start, start + count)
        yield rows_at(rows, index[some].permute(1, 2, 0) if cells_last else index[some]), some


def convolve(sites: Tensor, weight: Tensor, bias: Optional[Tensor], grid: Grid) -> Tensor:
    """Convolve each channel of visible sites (B, N, C), without a gradient: over windows of cells, or over maps."""
    if grid.patch <= SMALL:
        return pick(depthwise_reference(lay_out_map(sites, grid), weight, bias), grid)
    cells = sites.new_empty(sites.shape).view(-1, grid.patch, grid.patch, sites.shape[2])  # (B * K, p, p, C)
    for windows, some in windows_of_cells(sites, grid, weight.shape[-1] // 2):
        cells[some] = F.conv2d(windows.permute(0, 3, 1, 2), weight, bias, groups=len(weight)).permute(0, 2, 3, 1)
    return cells.view(sites.shape)


def geometry(grid: Grid) -> Geometry:
    """Tell kernels where visible sites are."""
    places = grid.places
    if places is None:
        places = places_of(grid.visible_cells, (grid.height // grid.patch) * (grid.width // grid.patch))
    return Geometry(grid.height, grid.width, grid.patch, grid.visible_cells.contiguous(), places)


def join_patches(features: Tensor, conv: nn.Conv2d) -> Tensor:
    """Run a convolution whose stride is its side k as one matrix product: (B, H, W, C) to (B, H / k, W / k, Cout). Over
    many small maps that is faster than a convolution."""
    side = conv.kernel_size[0]
    patches = features.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3)  # (.., k * k * C)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


class _PackedDepthwise(torch.autograd.Function):
    """The depthwise convolution with ``ops.depthwise``'s backward pass; keeps visible sites, never a map."""

    @staticmethod
    def forward(ctx, sites: Tensor, weight: Tensor, bias: Optional[Tensor], grid: Grid) -> Tensor:
        ctx.save_for_backward(sites, weight)
        ctx.grid = grid
        return convolve(sites, weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        sites, weight = ctx.saved_tensors
        wants_sites, wants_weight, wants_bias, _ = ctx.needs_input_grad
        backward = _backward_of_maps if ctx.grid.patch <= SMALL else _backward_of_windows
        gradients = backward(sites, weight, grad, ctx.grid, wants_sites, wants_weight)
        return *gradients, bias_gradient(grad) if wants_bias else None, None


def _backward_of_maps(sites: Tensor, weight: Tensor, grad: Tensor, grid: Grid, wants_sites: bool,
                      wants_weight: bool) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """Return the gradients of sites (B, N, C) and weight that are wanted, of one map each for sites and ``grad``."""
    grad_map, grad_sites, grad_weight = lay_out_map(grad, grid), None, None
    if wants_sites:
        grad_sites = pick(input_gradient(grad_map, weight), grid)
    if wants_weight:
        maps = (one.permute(0, 2, 3, 1) for one in (lay_out_map(sites, grid), grad_map))
        grad_weight = weight_gradient(*maps, weight.shape[-1])
    return grad_sites, grad_weight


def _backward_of_windows(sites: Tensor, weight: Tensor, grad: Tensor, grid: Grid, wants_sites: bool,
                         wants_weight: bool) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """Return the same of windows around cells."""
    side, grad_sites, grad_weight = weight.shape[-1], None, None
    if wants_sites:
        grad_sites = convolve(grad, mirrored(weight), None, grid)
    if wants_weight:
        tiles = grad.reshape(-1, grid.patch, grid.patch, grad.shape[2])  # (B * K, p, p, C)
        windows = windows_of_cells(sites, grid, side // 2, cells_last=True)
        grad_weight = correlate(((window, tiles[some]) for window, some in windows), grad, side, (0, 0))
    return grad_sites, grad_weight


class Packed(Execution):
    """The default of pretraining; no value of a hidden site is ever computed by a per-site layer."""

    name = 'packed'

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        height, width = images.shape[-2:]
        cells = gather(images, visible_cells, CELL).unflatten(1, (-1, CELL, CELL))  # (B, K, 32, 32, Cin)
        pictures = cells.flatten(0, 1).permute(0, 3, 1, 2)  # (B * K, Cin, 32, 32)
        sites = map_to_sites(stem(pictures)).reshape(len(images), -1, stem.out_channels)  # (B, K * 8 * 8, C)
        num_cells = (height // CELL) * (width // CELL)
        places = places_of(visible_cells, num_cells) if uses_kernels(images) else None
        return sites, with_rows(Grid(height // 4, width // 4, stride=4, visible_cells=visible_cells, places=places))

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tensor:
        if serves(sites, conv):
            return depthwise_sites(sites, conv, geometry(grid))
        if is_faster(sites, conv):
            sites, weight, bias = cast_for_autocast(sites, conv.weight, conv.bias)
            with without_autocast(sites.device):
                return _PackedDepthwise.apply(sites, weight, bias, grid)
        return gather(conv(scatter(sites, grid)), grid.visible_cells, grid.patch)

    def depthwise_norm(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
        if serves(sites, conv, norm):
            return depthwise_norm_sites(sites, conv, norm, geometry(grid))
        return super().depthwise_norm(sites, grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tuple[Tensor, Grid]:
        cells = sites.reshape(-1, grid.patch, grid.patch, sites.shape[-1])  # (B * K, p, p, C)
        if type(conv) is nn.Conv2d and not is_watched(conv):
            joined = join_patches(cells, conv)
        else:
            joined = conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return joined.reshape(len(sites), -1, conv.out_channels), with_rows(grid.halved())

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return scatter(sites, grid)
