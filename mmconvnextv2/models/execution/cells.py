"""Where visible cells lie in maps: taking their sites from one, and laying them out as one, zero elsewhere.

Differentiable functions index cells. ``lay_out_map`` and ``pick`` do the same by rows for the CPU, several times faster
and without a gradient, for backward passes that are written out.
Suffixes: B images, K cells, p sites along a cell's side, h and w cells along the picture's sides.
"""
from dataclasses import replace
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Grid, map_to_sites


def cells_of(features_BhpwpC: Tensor, visible_cells: Tensor) -> Tensor:
    """Gather visible cells: (B, h, p, w, p, C) and (B, K) to (B, K, p, p, C)."""
    batch, rows, patch, columns, _, channels = features_BhpwpC.shape
    index = visible_cells.view(batch, -1)
    image = image_index(index)
    return features_BhpwpC.permute(0, 1, 3, 2, 4, 5)[image, index // columns, index % columns]


def image_index(visible_cells: Tensor) -> Tensor:
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
    where = (image_index(index), index // columns, index % columns)
    features = features.permute(0, 1, 3, 2, 4, 5).index_put(where, cells).permute(0, 1, 3, 2, 4, 5)
    return features.reshape(batch, grid.height, grid.width, channels).permute(0, 3, 1, 2)


class SiteRows:
    """Where visible sites stand in the maps of a stage, both flattened to rows of C values; made once a step.

    Args:
        grid (Grid): The stage's.

    Attributes:
        of_map (Tensor): Long, (B * N, ), the row of the maps (B * H * W, C) at which each site stands.
        of_sites (Tensor): Long, (B, H, W), the row of the sites at which each place of the maps finds its own, and
            B * N where it is hidden.
    """

    def __init__(self, grid: Grid) -> None:
        self.visible_cells, self.patch = cells, patch = grid.visible_cells, grid.patch
        number = torch.arange(len(cells) * grid.height * grid.width, device=cells.device)
        split = number.view(len(cells), grid.height // patch, patch, grid.width // patch, patch, 1)
        self.of_map = cells_of(split, cells).flatten()
        order = torch.arange(len(self.of_map), device=cells.device)
        of_sites = torch.full_like(number, len(self.of_map)).scatter(0, self.of_map, order)
        self.of_sites = of_sites.view(len(cells), grid.height, grid.width)
        self._of_windows: Dict[int, Tensor] = {}

    def of_windows(self, radius: int) -> Tensor:
        """Return the rows of the sites of each visible cell and of those within ``radius`` of it, B * N where there is
        none: long, (B * K, p + 2r, p + 2r). Made when first asked for."""
        if radius not in self._of_windows:
            side, cells = self.patch + 2 * radius, self.visible_cells
            columns = self.of_sites.shape[2] // self.patch
            index = F.pad(self.of_sites, (radius, ) * 4, value=len(self.of_map))
            index = index.unfold(1, side, self.patch).unfold(2, side, self.patch)  # (B, h, w, p + 2r, p + 2r)
            self._of_windows[radius] = index[image_index(cells), cells // columns, cells % columns].flatten(0, 1)
        return self._of_windows[radius]


def rows_of(grid: Grid) -> SiteRows:
    """Return the grid's rows, or make them."""
    return SiteRows(grid) if grid.site_rows is None else grid.site_rows


def with_rows(grid: Grid) -> Grid:
    """Return the grid with its rows where they will be asked for: on the CPU, where no kernel looks for neighbours."""
    wanted = grid.visible_cells.device.type == 'cpu' and grid.places is None
    return replace(grid, site_rows=rows_of(grid) if wanted else None)


def with_zero(sites: Tensor) -> Tensor:
    """Return the rows of sites (B, N, C) and one of zeros after them, which places that have no site find."""
    return torch.cat([sites.flatten(0, 1), sites.new_zeros(1, sites.shape[-1])])


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Copy rows of C values by an index: its shape and C."""
    return rows.index_select(0, index.flatten()).view(*index.shape, -1)


def lay_out_map(sites: Tensor, grid: Grid) -> Tensor:
    """Do what :func:`scatter` does, without a gradient."""
    return rows_at(with_zero(sites), rows_of(grid).of_sites).permute(0, 3, 1, 2)


def pick(features_BCHW: Tensor, grid: Grid) -> Tensor:
    """Do what :func:`gather` does, without a gradient."""
    rows = map_to_sites(features_BCHW).flatten(0, 1)
    return rows.index_select(0, rows_of(grid).of_map).view(len(features_BCHW), -1, rows.shape[-1])
