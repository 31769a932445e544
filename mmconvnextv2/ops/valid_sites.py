"""Valid pixels, and the sites of each stage that they make valid.

A pixel is invalid if it holds no data: padding of a batch, the border of a satellite image, a dead sensor element. In a
batch, NaN marks it. A site of stride s is valid if *any* of its s x s pixels is. A site of the next stage is then valid
if any of its 2 x 2 sites is, so stages agree with each other and with the pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .cells import gather
from .grid import CELL, Grid, map_to_sites
from .reductions import fill_masked


def read_valid_pixels(images: Tensor) -> Tensor:
    """Return a bool map (B, H, W) of images (B, C, H, W), True where no channel is NaN."""
    return ~images.amax(1).isnan()  # a maximum with NaN is NaN; several times faster than any() of flags


def check_valid_pixels(valid_pixels: Tensor, images: Tensor) -> None:
    """Raise ``ValueError`` if a map of valid pixels is not bool or does not fit images (B, C, H, W)."""
    expected = (images.shape[0], *images.shape[-2:])
    if valid_pixels.dtype != torch.bool or tuple(valid_pixels.shape) != expected:
        raise UserError(
            f'valid_pixels is {valid_pixels.dtype} of shape {tuple(valid_pixels.shape)}: expected torch.bool of shape '
            f'{expected}, one value per pixel of the images, True = valid'
        )


def fill_invalid(images: Tensor, valid_pixels: Tensor) -> Tensor:
    """Return images (B, C, H, W), channels-last, that are zero where ``valid_pixels`` (B, H, W) is False.

    Values are selected, not multiplied, so not even NaN passes.
    """
    filled = fill_masked(map_to_sites(images), valid_pixels.flatten(1).unsqueeze(2))  # (B, H * W, C)
    return filled.unflatten(1, images.shape[-2:]).permute(0, 3, 1, 2)


def any_valid(valid: Tensor, side: int) -> Tensor:
    """Return whether any of side x side neighbours is valid: bool (B, H, W) to (B, H // side, W // side).

    Rows and columns that do not fill a square are left out, as convolutions without padding leave them out.
    """
    return F.max_pool2d(valid.unsqueeze(1).float(), side).squeeze(1) > 0 if side > 1 else valid


def valid_sites(valid_pixels: Tensor, stride: int, visible_cells: Tensor | None = None, cell: int = CELL) -> Tensor:
    """Return the valid sites of the first stage, bool (B, N, 1).

    Args:
        valid_pixels (Tensor): Valid pixels, bool, (B, H, W).
        stride (int): Pixels s along a site's side.
        visible_cells (Tensor, optional): Visible cells, long, (B, K). Defaults to None: sites are those of the whole
            map in raster order, N = (H // s) * (W // s). Otherwise they are in packed order, N = K * (cell / s)^2.
        cell (int): Pixels along one side of a cell. Defaults to 32.
    """
    if visible_cells is None:
        return any_valid(valid_pixels, stride).flatten(1).unsqueeze(2)
    pixels = gather(valid_pixels.unsqueeze(1), visible_cells, cell)  # (B, K * cell * cell, 1)
    return any_valid(pixels.view(-1, cell, cell), stride).reshape(pixels.shape[0], -1, 1)


def halve_mask(grid: Grid) -> Tensor | None:
    """Return the ``site_mask`` (B, N', 1) of the stage after ``grid``'s, None if it has none."""
    if grid.site_mask is None:
        return None
    shape = (grid.patch, grid.patch) if grid.is_packed else (grid.height, grid.width)
    return any_valid(grid.site_mask.reshape(-1, *shape), 2).reshape(grid.site_mask.shape[0], -1, 1)
