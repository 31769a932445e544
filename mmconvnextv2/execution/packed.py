"""Visit only the visible sites: K cells of p x p sites an image, N = K * p * p, with p = 8, 4, 2, 1 by stage.

Site order: cells in ascending raster order, then raster order inside the cell. Pointwise work and per-image sums touch
visible sites only and need nothing from this file. Downsampling never leaves its cell. Only the depthwise convolution
needs neighbours, which it finds in a map that is zero elsewhere, or as a Triton kernel through an index of cells.
Suffixes: B images, K cells, p sites along a cell's side, h and w cells along the picture's sides.
"""
from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops.autocast import cast_for_autocast, without_autocast
from ..ops.depthwise import (at_a_time, bias_gradient, correlate, depthwise_reference, input_gradient, is_faster,
                             weight_gradient)
from ..ops.dispatch import is_watched, uses_kernels
from ..ops.neighbours import Geometry, depthwise_norm_sites, depthwise_sites, places_of, serves
from .base import CELL, Execution, Grid, map_to_sites
from .cells import gather, image_index, lay_out_map, pick, rows_at, rows_of, scatter, with_rows, with_zero

SMALL = 2  # sites along the side of cells whose windows, of 49 and 64 sites, take longer than maps


def windows_of_cells(sites: Tensor, grad: Tensor, grid: Grid, radius: int) -> Iterator[Tuple[Tensor, Tensor]]:
    """Yield windows around several visible cells and their output's gradient, as ``correlate`` takes them, of sites and
    their output's gradient, both (B, N, C)."""
    patch = grid.patch
    index = rows_of(grid).of_sites.view(len(sites), grid.height, grid.width)
    index = F.pad(index, (radius, ) * 4, value=sites.shape[0] * sites.shape[1])
    index = index.unfold(1, patch + 2 * radius, patch).unfold(2, patch + 2 * radius, patch)  # (B, h, w, p + 2r, p + 2r)
    cells, columns = grid.visible_cells, grid.width // patch
    index = index[image_index(cells), cells // columns, cells % columns]  # (B, K, p + 2r, p + 2r)
    windows = index.flatten(0, 1).permute(1, 2, 0)  # (p + 2r, p + 2r, B * K)
    rows, tiles = with_zero(sites), grad.reshape(-1, patch, patch, grad.shape[-1])  # (B * K, p, p, C)
    count = at_a_time((patch + 2 * radius)**2 * sites.shape[2])
    for some, grads in zip(windows.split(count, 2), tiles.split(count)):
        yield rows_at(rows, some), grads


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
        return pick(depthwise_reference(lay_out_map(sites, grid), weight, bias), grid)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        sites, weight = ctx.saved_tensors
        grid, side, grad_sites, grad_weight = ctx.grid, weight.shape[-1], None, None
        by_maps = grid.patch <= SMALL
        grad_map = lay_out_map(grad, grid) if ctx.needs_input_grad[0] or by_maps else None
        if ctx.needs_input_grad[0]:
            grad_sites = pick(input_gradient(grad_map, weight), grid)
        if ctx.needs_input_grad[1] and by_maps:
            maps = (one.permute(0, 2, 3, 1) for one in (lay_out_map(sites, grid), grad_map))
            grad_weight = weight_gradient(*maps, side)
        elif ctx.needs_input_grad[1]:
            grad_weight = correlate(windows_of_cells(sites, grad, grid, side // 2), grad, side, (0, 0))
        return grad_sites, grad_weight, bias_gradient(grad) if ctx.needs_input_grad[2] else None, None


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
