"""Execution that visits every site, for downstream tasks on whole images of any size. Sites are in raster order.

Where the grid has a ``site_mask``, other sites are read as zero. Their values are replaced, not multiplied by zero, so
not even NaN passes. With valid pixels the mask is that of valid sites; ``masked`` has that of visible cells.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...ops.grid import Grid, map_to_sites, sites_to_map
from ...ops.reductions import fill_masked
from ...ops.valid_sites import halve_mask, valid_sites
from .base import Execution


class Dense(Execution):
    """Ordinary convolutions on whole maps, in channels-last memory throughout."""

    name = 'dense'
    masks = False

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        features = stem(F.pad(images, (border,) * 4) if border else images)
        # Channels-last, as the images are: from here to leave, conversions between maps and sites are views
        height, width = features.shape[-2:]
        site_mask = None if valid_pixels is None else valid_sites(valid_pixels, stride)
        return map_to_sites(features), Grid(height, width, stride=stride, site_mask=site_mask, cell=8 * stride)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        # At each convolution again: norms, linears and biases leave values other than zero at masked sites
        return ops.depthwise(fill_masked(sites, grid.site_mask), grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        features = sites_to_map(fill_masked(sites, grid.site_mask), grid)
        return map_to_sites(conv(features)), grid.halved(halve_mask(grid))

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return sites_to_map(fill_masked(sites, grid.site_mask), grid)
