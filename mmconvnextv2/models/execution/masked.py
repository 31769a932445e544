"""Visit every site and replace hidden ones by zero when they are read: the plain reference.

It is what the paper's JAX code computes. Hidden values are selected away, never multiplied by zero, so that not even a
NaN passes. Sites are in raster order. :class:`Leaky` is the paper's row "without sparse convolution".
"""
from dataclasses import replace
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ...ops.reductions import hide
from .base import CELL, Grid, sites_to_map
from .dense import Dense


def visible_sites(visible_cells: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Upsample visible cells (B, K) to a bool mask (B, H * W, 1) of a stage's H x W sites, True = visible."""
    patch = CELL // stride
    rows, columns = height // patch, width // patch
    mask = torch.zeros(len(visible_cells), rows * columns, dtype=torch.bool, device=visible_cells.device)
    mask = mask.scatter(1, visible_cells, True).view(-1, rows, columns)
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).reshape(len(mask), -1, 1)


class Masked(Dense):
    """Dense convolutions that read zero at hidden sites; per-image sums count visible sites only."""

    name = 'masked'
    masks = True

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        height, width = images.shape[-2:]
        shown = visible_sites(visible_cells, height, width, 1).view(len(images), 1, height, width)
        sites, grid = super().enter(torch.where(shown, images, images.new_zeros(())), None, stem)
        counted = visible_sites(visible_cells, grid.height, grid.width, grid.stride)
        return sites, replace(grid, visible_cells=visible_cells, counted=counted)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tensor:
        return super().depthwise(hide(sites, grid.counted), grid, conv)

    def depthwise_norm(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
        return Dense().depthwise_norm(hide(sites, grid.counted), grid, conv, norm)  # which hides nothing again

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tuple[Tensor, Grid]:
        sites, grid = super().downsample(hide(sites, grid.counted), grid, conv)
        counted = visible_sites(grid.visible_cells, grid.height, grid.width, grid.stride)
        return sites, replace(grid, counted=counted)

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return sites_to_map(hide(sites, grid.counted), grid)


class Leaky(Dense):
    """Hide cells in the image only, then run dense: convolutions leak across the mask.

    An ablation (79.3 against 83.7 top-1 in the paper's section 3.1), not a way to pretrain.
    """

    name = 'leaky'
    masks = True

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        height, width = images.shape[-2:]
        shown = visible_sites(visible_cells, height, width, 1).view(len(images), 1, height, width)
        return super().enter(torch.where(shown, images, images.new_zeros(())), None, stem)
