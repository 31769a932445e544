"""Execution that visits only visible sites: K cells of p x p sites per image, N = K * p * p, p = 8, 4, 2, 1 by stage.

Sites are ordered by cell, in ascending raster order, then in raster order inside the cell. Per-site layers and
per-image sums run on visible sites only and need nothing from this file. Stem and downsampling stay inside a cell. Only
the depthwise convolution reads other cells; ``ops.depthwise`` finds them through the grid.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...ops.cells import gather, scatter
from ...ops.depthwise_triton import with_neighbours
from ...ops.dispatch import use_matmul, use_packed_index, use_triton
from ...ops.grid import CELL, Grid, cell_slots, map_to_sites
from .base import Execution


class Packed(Execution):
    """Convolutions on visible cells only; the default for pretraining."""

    name = 'packed'

    def enter(self, images: Tensor, visible_cells: Tensor | None, stem: nn.Conv2d) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        height, width = images.shape[-2:]
        cells = gather(images, visible_cells, CELL).unflatten(1, (-1, CELL, CELL))  # (B, K, 32, 32, Cin)
        cells = cells.flatten(0, 1).permute(0, 3, 1, 2)  # (B * K, Cin, 32, 32)
        sites = map_to_sites(stem(cells)).reshape(len(images), -1, stem.out_channels)  # (B, K * 8 * 8, C)
        # Kernels and the CPU look neighbours up in tables that all blocks of a step, or of a stage, share
        slots = cell_slots(visible_cells, height // CELL, width // CELL) if use_triton(images) else None
        return sites, _indexed(Grid(height // 4, width // 4, stride=4, visible_cells=visible_cells, cell_slots=slots))

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        return ops.depthwise(sites, grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        cells = sites.reshape(-1, grid.patch, grid.patch, sites.shape[-1])  # (B * K, p, p, C)
        if use_matmul(conv):
            cells = strided_conv_as_matmul(cells, conv)
        else:
            cells = conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return cells.reshape(len(sites), -1, conv.out_channels), with_neighbours(_indexed(grid.halved()))

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return scatter(sites, grid)


def _indexed(grid: Grid) -> Grid:
    return grid.with_packed_index() if use_packed_index(grid.cells, grid) else grid


def strided_conv_as_matmul(features: Tensor, conv: nn.Conv2d) -> Tensor:
    """Run a convolution with stride and side k as one matrix product: (B, H, W, C) to (B, H / k, W / k, Cout).

    On many small maps, such as visible cells, this is faster than a convolution.
    """
    side = conv.kernel_size[0]
    patches = features.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3)  # (.., k * k * C)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
