"""Execution that visits only visible sites: K cells of p x p sites per image, N = K * p * p, p = 8, 4, 2, 1 by stage.

Sites are ordered by cell, in ascending raster order, then in raster order inside the cell. Per-site layers and
per-image sums run on visible sites only and need nothing from this file. Stem and downsampling stay inside a cell. Only
the depthwise convolution reads other cells; ``ops.depthwise`` finds them through the grid.
"""

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...ops.cells import gather, scatter
from ...ops.depthwise_triton import with_neighbours
from ...ops.dispatch import use_matmul, use_packed_index, use_triton
from ...ops.grid import Grid, cell_slots, image_index, map_to_sites
from ...ops.reductions import fill_masked
from ...ops.valid_sites import halve_mask, valid_sites
from .base import Execution
from .masked import mask_images


class Packed(Execution):
    """Convolutions on visible cells only; the default for pretraining."""

    name = 'packed'

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        cell, (height, width) = 8 * stride, images.shape[-2:]
        if border:
            cells = windows_of_cells(mask_images(images, visible_cells, cell), visible_cells, cell, border)
        else:
            cells = gather(images, visible_cells, cell).unflatten(1, (-1, cell, cell)).flatten(0, 1)
        features = stem(cells.permute(0, 3, 1, 2))  # (B * K, C, 8, 8)
        sites = map_to_sites(features).reshape(len(images), -1, features.shape[1])  # (B, K * 8 * 8, C)
        # Kernels and the CPU look neighbours up in tables that all blocks of a step, or of a stage, share
        slots = cell_slots(visible_cells, height // cell, width // cell) if use_triton(images) else None
        grid = Grid(height // stride, width // stride, stride, visible_cells, cell_slots=slots, cell=cell)
        if valid_pixels is not None:
            grid = replace(grid, site_mask=valid_sites(valid_pixels, stride, visible_cells, cell))
        return sites, _indexed(grid)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        return ops.depthwise(fill_masked(sites, grid.site_mask), grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        cells = fill_masked(sites, grid.site_mask).reshape(
            -1, grid.patch, grid.patch, sites.shape[-1]
        )  # (B * K, p, p, C)
        if use_matmul(conv):
            cells = strided_conv_as_matmul(cells, conv)
        else:
            cells = conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        following = with_neighbours(_indexed(grid.halved(halve_mask(grid))))
        return cells.reshape(len(sites), -1, conv.out_channels), following

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return scatter(fill_masked(sites, grid.site_mask), grid)


def _indexed(grid: Grid) -> Grid:
    return grid.with_packed_index() if use_packed_index(grid.cells, grid) else grid


def windows_of_cells(images: Tensor, visible_cells: Tensor, cell: int, border: int) -> Tensor:
    """Return the pixels of visible cells (B, K) and ``border`` around them, zero outside of the image.

    Images (B, C, H, W) become (B * K, cell + 2 * border, cell + 2 * border, C).
    """
    columns, side = images.shape[-1] // cell, cell + 2 * border
    padded = F.pad(images, (border,) * 4).permute(0, 2, 3, 1)
    windows = padded.unfold(1, side, cell).unfold(2, side, cell)  # (B, h, w, C, side, side), a view
    windows = windows[image_index(visible_cells), visible_cells // columns, visible_cells % columns]
    return windows.flatten(0, 1).permute(0, 2, 3, 1)


def strided_conv_as_matmul(features: Tensor, conv: nn.Conv2d) -> Tensor:
    """Run a convolution with stride and side k as one matrix product: (B, H, W, C) to (B, H / k, W / k, Cout).

    On many small maps, such as visible cells, this is faster than a convolution.
    """
    side = conv.kernel_size[0]
    patches = features.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3)  # (.., k * k * C)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
