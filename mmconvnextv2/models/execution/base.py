"""Contract between a ConvNeXt V2 block and an execution, which decides which sites of an image a forward visits.

A block only sees sites (B, N, C). An execution knows where they are: it turns an image into sites, runs the few
operations that read neighbours, and turns sites back into a map. It has no parameters and no state. The geometry of a
stage's sites is passed along in a :class:`~mmconvnextv2.ops.grid.Grid`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...ops.grid import CELL, Grid
from ...utils.errors import UserError


class Execution:
    """Base class of executions. Subclasses implement four operations, all of them differentiable."""

    name: str
    masks = True  # whether the execution accepts visible cells

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """Run the stem: images (B, Cin, H, W) to sites (B, N, C) and the first stage's grid.

        Args:
            images (Tensor): Images of shape (B, Cin, H, W), zero at invalid pixels.
            visible_cells (Tensor, optional): Visible cells of 8 * stride pixels, long, (B, K).
            stem (Callable): Layer, or function of maps (n, Cin, h + 2 * border, w + 2 * border) that returns
                (n, C, h / stride, w / stride); a site reads pixels of its own patch and ``border`` around it.
            stride (int): Pixels between sites. Defaults to 4.
            border (int): Pixels around a patch that the stem reads, zero where they are masked or outside of the
                image. Defaults to 0.
            valid_pixels (Tensor, optional): Pixels that hold data, bool (B, H, W); the grid's ``site_mask`` leaves out
                sites without one. Defaults to None, all.
        """
        raise NotImplementedError

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        """Convolve each channel of sites (B, N, C) over its neighbours, and normalise the result site by site."""
        raise NotImplementedError

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        """Run a 2x2 convolution of stride 2: sites (B, N, Cin) to (B, N', Cout) and the next grid."""
        raise NotImplementedError

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        """Turn sites (B, N, C) into a channels-last map (B, C, H, W), zero at masked sites."""
        raise NotImplementedError


def check_images(images: Tensor, visible_cells: Tensor | None, cell: int = CELL) -> None:
    """Raise ``ValueError`` if no execution can process the images or visible cells, of ``cell`` pixels a side.

    Only shapes and dtypes are checked: reading values would synchronise with the GPU.
    """
    if images.ndim != 4:
        raise UserError(f'images has shape {tuple(images.shape)}: expected (B, channels, height, width)')
    height, width = images.shape[-2:]
    if visible_cells is None:
        if min(height, width) < cell:
            raise UserError(f'images are {height}x{width} pixels: the backbone needs at least {cell}x{cell}')
        return
    if height % cell or width % cell:
        raise UserError(
            f'images are {height}x{width} pixels: with visible_cells both sides must be multiples of '
            f'{cell}; resize or crop to {max(height // cell, 1) * cell}x{max(width // cell, 1) * cell}'
        )
    num_cells = (height // cell) * (width // cell)
    shape = tuple(visible_cells.shape)
    if visible_cells.dtype != torch.long or len(shape) != 2 or shape[0] != images.shape[0]:
        raise UserError(
            f'visible_cells is {visible_cells.dtype} of shape {shape}: expected torch.int64 of shape '
            f'({images.shape[0]}, K); mask_to_visible_cells converts a bool mask'
        )
    if not 1 <= shape[1] <= num_cells:
        raise UserError(
            f'visible_cells has {shape[1]} cells per image: expected 1 to {num_cells} for {height}x{width} pixels'
        )


def mask_to_visible_cells(visible: Tensor) -> Tensor:
    """Convert a bool mask of cells, such as (B, H/32, W/32), True = visible, to visible cells (B, K).

    Synchronises with the GPU.

    Examples:
        >>> mask_to_visible_cells(torch.tensor([[[True, False], [False, True]]]))
        tensor([[0, 3]])

    Raises:
        ValueError: If the mask is not bool or masks everything, or if images have different numbers of visible cells.
    """
    if visible.dtype != torch.bool or visible.ndim != 3:
        raise UserError(
            f'visible is {visible.dtype} of shape {tuple(visible.shape)}: expected bool of shape '
            '(B, height / 32, width / 32), True = visible'
        )
    counts = sorted(set(visible.flatten(1).sum(1).tolist()))
    if len(counts) != 1 or counts[0] == 0:
        raise UserError(
            f'visible has {counts} visible cells per image: every image must have the same number, at least 1'
        )
    return visible.flatten(1).nonzero()[:, 1].view(len(visible), -1)
