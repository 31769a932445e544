"""Visit every site: downstream work on whole images of any size. Sites are in raster order."""
from typing import Optional, Tuple

from torch import Tensor, nn

from ... import ops
from ...ops.grid import Grid, map_to_sites, sites_to_map
from .base import Execution


class Dense(Execution):
    """Ordinary convolutions on the whole map, in channels-last memory throughout."""

    name = 'dense'
    masks = False

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        features = stem(images)
        return map_to_sites(features), Grid(*features.shape[-2:], stride=4)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: Optional[nn.Module] = None) -> Tensor:
        return ops.depthwise(sites, grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tuple[Tensor, Grid]:
        return map_to_sites(conv(sites_to_map(sites, grid))), grid.halved()

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return sites_to_map(sites, grid)
