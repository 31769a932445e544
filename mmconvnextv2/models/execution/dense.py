"""Execution that visits every site, for downstream tasks on whole images of any size. Sites are in raster order."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops
from ...ops.grid import Grid, map_to_sites, sites_to_map
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
    ) -> tuple[Tensor, Grid]:
        features = stem(F.pad(images, (border,) * 4) if border else images)
        # Channels-last, as the images are: from here to leave, conversions between maps and sites are views
        height, width = features.shape[-2:]
        return map_to_sites(features), Grid(height, width, stride=stride, cell=8 * stride)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        return ops.depthwise(sites, grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        return map_to_sites(conv(sites_to_map(sites, grid))), grid.halved()

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return sites_to_map(sites, grid)
