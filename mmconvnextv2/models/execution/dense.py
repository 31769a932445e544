"""Visit every site: downstream work on whole pictures of any size. Sites are in raster order."""
from typing import Optional, Tuple

from torch import Tensor, nn

from ...ops.depthwise import depthwise, is_faster
from ...ops.depthwise_triton import Geometry, depthwise_norm_sites, depthwise_sites, serves
from .base import Execution, Grid, map_to_sites, sites_to_map


class Dense(Execution):
    """Ordinary convolutions on the whole map, in channels-last memory throughout."""

    name = 'dense'
    masks = False

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        features = stem(images)
        return map_to_sites(features), Grid(*features.shape[-2:], stride=4)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tensor:
        if serves(sites, conv):
            return depthwise_sites(sites, conv, Geometry(grid.height, grid.width))
        features = sites_to_map(sites, grid)
        if is_faster(features, conv):
            return map_to_sites(depthwise(features, conv.weight, conv.bias))
        return map_to_sites(conv(features))

    def depthwise_norm(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
        if serves(sites, conv, norm):
            return depthwise_norm_sites(sites, conv, norm, Geometry(grid.height, grid.width))
        return super().depthwise_norm(sites, grid, conv, norm)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tuple[Tensor, Grid]:
        return map_to_sites(conv(sites_to_map(sites, grid))), grid.halved()

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        return sites_to_map(sites, grid)
