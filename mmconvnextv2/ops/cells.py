"""Conversion between visible cells and maps: gather sites from a map, scatter them into one, upsample a cell mask.

``gather`` and ``scatter`` are differentiable. The ``_nograd`` variants do the same by row indices, several times faster
on the CPU, and serve the hand-written backward passes. Suffixes as in :mod:`mmconvnextv2.ops.grid`.
"""

import torch
from torch import Tensor

from .grid import CELL, Grid, cells_of, image_index, map_to_sites


def visible_sites(visible_cells: Tensor, height: int, width: int, stride: int, cell: int = CELL) -> Tensor:
    """Upsample visible cells (B, K) to a bool mask (B, H * W, 1) of a stage's H x W sites, True = visible."""
    patch = cell // stride
    rows, columns = height // patch, width // patch
    mask = torch.zeros(len(visible_cells), rows * columns, dtype=torch.bool, device=visible_cells.device)
    mask = mask.scatter(1, visible_cells, True).view(-1, rows, columns)
    # Integer repeats: with a tensor of repeats, the output's size would have to be read from the GPU
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2).reshape(len(mask), -1, 1)


def gather(features_BCHW: Tensor, visible_cells: Tensor, patch: int) -> Tensor:
    """Gather the sites of visible cells from a map (B, C, H, W): (B, K * p * p, C)."""
    features = features_BCHW.permute(0, 2, 3, 1)
    height, width = features.shape[1:3]
    # Views up to the indexing in cells_of, so only visible cells are copied
    split = features.unflatten(2, (width // patch, patch)).unflatten(1, (height // patch, patch))
    return cells_of(split, visible_cells).flatten(1, 3)


def scatter(sites: Tensor, grid: Grid) -> Tensor:
    """Scatter packed sites (B, K * p * p, C) into a channels-last map (B, C, H, W) that is zero at masked sites."""
    patch, batch, channels = grid.patch, len(sites), sites.shape[-1]
    rows, columns = grid.height // patch, grid.width // patch
    index = grid.cells
    features = sites.new_zeros(batch, rows, patch, columns, patch, channels)
    cells = sites.view(batch, index.shape[1], patch, patch, channels)
    where = (image_index(index), index // columns, index % columns)
    # In the order (B, h, w, p, p, C) one index writes a whole cell
    features = features.permute(0, 1, 3, 2, 4, 5).index_put(where, cells).permute(0, 1, 3, 2, 4, 5)
    return features.reshape(batch, grid.height, grid.width, channels).permute(0, 3, 1, 2)


def append_zero_row(sites: Tensor) -> Tensor:
    """Flatten sites (B, N, C) to rows and append a zero row, which masked positions index: (B * N + 1, C)."""
    return torch.cat([sites.flatten(0, 1), sites.new_zeros(1, sites.shape[-1])])


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Copy rows of C values by an index of any shape; returns (*index.shape, C)."""
    return rows.index_select(0, index.flatten()).view(*index.shape, -1)


def scatter_nograd(sites: Tensor, grid: Grid) -> Tensor:
    """Compute :func:`scatter` without a gradient."""
    return take_rows(append_zero_row(sites), grid.index().site_rows).permute(0, 3, 1, 2)


def gather_nograd(features_BCHW: Tensor, grid: Grid) -> Tensor:
    """Compute :func:`gather` without a gradient."""
    rows = map_to_sites(features_BCHW).flatten(0, 1)
    return rows.index_select(0, grid.index().map_rows).view(len(features_BCHW), -1, rows.shape[-1])
