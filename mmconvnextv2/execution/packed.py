"""Visit only the visible sites: K cells of p x p sites an image, N = K * p * p, with p = 8, 4, 2, 1 by stage.

Site order: cells in ascending raster order, then raster order inside the cell. Pointwise work and per-image sums touch
visible sites only and need nothing from this file. Downsampling never leaves its cell. Only the depthwise convolution
needs neighbours, which it finds in a map that is zero elsewhere, or as a Triton kernel through an index of cells.
Suffixes: B images, K cells, p sites along a cell's side, h and w cells along the picture's sides.
"""
from dataclasses import replace
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops.autocast import cast_for_autocast, without_autocast
from ..ops.depthwise import bias_gradient, depthwise_reference, input_gradient, is_faster, weight_gradient
from ..ops.dispatch import uses_kernels
from ..ops.neighbours import Geometry, depthwise_norm_sites, depthwise_sites, places_of, serves
from .base import CELL, Execution, Grid, map_to_sites


def cells_of(features_BhpwpC: Tensor, visible_cells: Tensor) -> Tensor:
    """Gather visible cells: (B, h, p, w, p, C) and (B, K) to (B, K, p, p, C)."""
    batch, rows, patch, columns, _, channels = features_BhpwpC.shape
    index = visible_cells.view(batch, -1)
    image = _image_index(index)
    return features_BhpwpC.permute(0, 1, 3, 2, 4, 5)[image, index // columns, index % columns]


def _image_index(visible_cells: Tensor) -> Tensor:
    """Return the image number of each visible cell, (B, 1), to index beside (B, K)."""
    return visible_cells.new_ones(len(visible_cells), 1).cumsum(0) - 1


def gather(features_BCHW: Tensor, visible_cells: Tensor, patch: int) -> Tensor:
    """Take the sites of visible cells from a map (B, C, H, W): (B, K * p * p, C)."""
    features = features_BCHW.permute(0, 2, 3, 1)
    height, width = features.shape[1:3]
    split = features.unflatten(2, (width // patch, patch)).unflatten(1, (height // patch, patch))
    return cells_of(split, visible_cells).flatten(1, 3)


def scatter(sites: Tensor, grid: Grid) -> Tensor:
    """Lay packed sites (B, K * p * p, C) out as a map (B, C, H, W), zero at hidden sites, channels-last."""
    patch, batch, channels = grid.patch, len(sites), sites.shape[-1]
    rows, columns = grid.height // patch, grid.width // patch
    index = grid.visible_cells
    features = sites.new_zeros(batch, rows, patch, columns, patch, channels)
    cells = sites.view(batch, index.shape[1], patch, patch, channels)
    where = (_image_index(index), index // columns, index % columns)
    features = features.permute(0, 1, 3, 2, 4, 5).index_put(where, cells).permute(0, 1, 3, 2, 4, 5)
    return features.reshape(batch, grid.height, grid.width, channels).permute(0, 3, 1, 2)


def windows(sites: Tensor, grid: Grid, radius: int) -> Tensor:
    """Take each visible cell with the sites within ``radius`` of it: (p + 2r, p + 2r, B * K, C), zero where hidden."""
    patch, index = grid.patch, grid.visible_cells
    features = F.pad(scatter(sites, grid).permute(0, 2, 3, 1), (0, 0, radius, radius, radius, radius))
    height, width, columns = *features.shape[1:3], grid.width // patch
    corner = (_image_index(index) * height + index // columns * patch) * width + index % columns * patch  # (B, K)
    offset = torch.arange(patch + 2 * radius, device=index.device)
    position = (offset[:, None] * width + offset)[..., None] + corner.flatten()  # (p + 2r, p + 2r, B * K)
    return features.flatten(0, 2)[position]


def geometry(grid: Grid) -> Geometry:
    """Tell kernels where visible sites are."""
    places = grid.places
    if places is None:
        places = places_of(grid.visible_cells, (grid.height // grid.patch) * (grid.width // grid.patch))
    return Geometry(grid.height, grid.width, grid.patch, grid.visible_cells.contiguous(), places)


class _PackedDepthwise(torch.autograd.Function):
    """The depthwise convolution with ``ops.depthwise``'s backward pass; keeps visible sites, never a map."""

    @staticmethod
    def forward(ctx, sites: Tensor, weight: Tensor, bias: Optional[Tensor], grid: Grid) -> Tensor:
        ctx.save_for_backward(sites, weight)
        ctx.grid = grid
        return gather(depthwise_reference(scatter(sites, grid), weight, bias), grid.visible_cells, grid.patch)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        sites, weight = ctx.saved_tensors
        grid, grad_sites, grad_weight = ctx.grid, None, None
        if ctx.needs_input_grad[0]:
            grad_map = input_gradient(scatter(grad, grid), weight)
            grad_sites = gather(grad_map, grid.visible_cells, grid.patch)
        if ctx.needs_input_grad[1]:
            tiles = grad.reshape(-1, grid.patch, grid.patch, grad.shape[-1]).permute(1, 2, 0, 3)  # (p, p, B * K, C)
            grad_weight = weight_gradient(windows(sites, grid, weight.shape[-1] // 2), tiles)
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
        return sites, Grid(height // 4, width // 4, stride=4, visible_cells=visible_cells, places=places)

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
        patch = grid.patch
        cells = sites.reshape(-1, patch, patch, sites.shape[-1]).permute(0, 3, 1, 2)  # (B * K, C, p, p)
        sites = map_to_sites(conv(cells)).reshape(len(sites), -1, conv.out_channels)
        return sites, replace(grid.halved(), visible_cells=grid.visible_cells)

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return scatter(sites, grid)
