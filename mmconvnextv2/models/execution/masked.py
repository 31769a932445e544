"""Execution that visits every site and reads masked ones as zero: the plain reference for the others.

It computes what the paper's JAX code does: a dense forward whose grid has a mask of sites. Sites are in raster order.
:class:`Leaky` is the paper's row "without sparse convolution".
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...ops.cells import visible_sites
from ...ops.grid import CELL, Grid
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
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        images = mask_images(images, visible_cells, 8 * stride)
        sites, grid = super().enter(images, None, stem, stride, border, valid_pixels)
        shown = visible_sites(visible_cells, grid.height, grid.width, grid.stride, grid.cell)
        return sites, replace(grid, site_mask=shown if grid.site_mask is None else shown & grid.site_mask)


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
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        assert visible_cells is not None  # checked by get_execution
        images = mask_images(images, visible_cells, 8 * stride)
        return super().enter(images, None, stem, stride, border, valid_pixels)


def mask_images(images: Tensor, visible_cells: Tensor, cell: int = CELL) -> Tensor:
    """Return images (B, C, H, W) that are zero in masked cells."""
    height, width = images.shape[-2:]
    visible = visible_sites(visible_cells, height, width, 1, cell).view(len(images), 1, height, width)
    return torch.where(visible, images, images.new_zeros(()))
