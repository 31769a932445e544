"""Execution that visits every site and reads masked ones as zero: the plain reference for the others.

It computes what the paper's JAX code does. Masked values are replaced by zero, not multiplied by it, so not even NaN
passes. Sites are in raster order. :class:`Leaky` is the paper's row "without sparse convolution".
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...ops.cells import visible_sites
from ...ops.grid import CELL, Grid
from ...ops.reductions import fill_masked
from .dense import Dense


class Masked(Dense):
    """Dense convolutions that read zero at masked sites; per-image sums count visible sites only."""

    name = 'masked'
    masks = True

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
    ) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        sites, grid = super().enter(mask_images(images, visible_cells, 8 * stride), None, stem, stride, border)
        site_mask = visible_sites(visible_cells, grid.height, grid.width, grid.stride, grid.cell)
        return sites, replace(grid, visible_cells=visible_cells, site_mask=site_mask)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        # At each convolution again: norms, linears and biases leave values other than zero at masked sites
        return super().depthwise(fill_masked(sites, grid.site_mask), grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        sites, grid = super().downsample(fill_masked(sites, grid.site_mask), grid, conv)
        site_mask = visible_sites(grid.cells, grid.height, grid.width, grid.stride, grid.cell)
        return sites, replace(grid, site_mask=site_mask)

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return super().leave(fill_masked(sites, grid.site_mask), grid)


class Leaky(Dense):
    """Dense execution on an image with masked cells set to zero, where convolutions leak across the mask.

    An ablation, not meant for pretraining: the paper's section 3.1 reports 79.3 against 83.7 top-1.
    """

    name = 'leaky'
    masks = True

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
    ) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        return super().enter(mask_images(images, visible_cells, 8 * stride), None, stem, stride, border)


def mask_images(images: Tensor, visible_cells: Tensor, cell: int = CELL) -> Tensor:
    """Return images (B, C, H, W) that are zero in masked cells."""
    height, width = images.shape[-2:]
    visible = visible_sites(visible_cells, height, width, 1, cell).view(len(images), 1, height, width)
    return torch.where(visible, images, images.new_zeros(()))
