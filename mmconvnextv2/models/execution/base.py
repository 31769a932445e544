"""The contract between a ConvNeXt V2 block and the way a forward visits the sites of an image.

A block sees sites (B, N, C) only. An execution knows where sites are: it turns an image into sites, runs the few
operations that look at neighbours, and turns sites back into a map. It owns no parameter and keeps no state; where the
sites of a stage are travels in a :class:`Grid`.
"""
from dataclasses import dataclass, replace
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ...utils.errors import UserError

CELL = 32  # pixels along one side of a masking cell, the stride of the last stage


@dataclass(frozen=True)
class Grid:
    """Where the sites of one stage are.

    Args:
        height (int): Rows of the stage's full map.
        width (int): Columns of the stage's full map.
        stride (int): Pixels of the image between two sites.
        visible_cells (Tensor, optional): Long, (B, K), raster indices of each image's visible 32x32-pixel cells in
            ascending order. None: no masking.
        counted (Tensor, optional): Bool, (B, N, 1), True at sites that take part in per-image sums. None: all do.
        places (Tensor, optional): Where each cell stands among the visible ones, made once a step for kernels that
            look for neighbours there; see :func:`mmconvnextv2.ops.depthwise_triton.places_of`.
        site_rows (SiteRows, optional): Where sites stand in the stage's maps, for the CPU; see ``cells.SiteRows``.
    """
    height: int
    width: int
    stride: int
    visible_cells: Optional[Tensor] = None
    counted: Optional[Tensor] = None
    places: Optional[Tensor] = None
    site_rows: Optional[object] = None

    @property
    def patch(self) -> int:
        """Sites along one side of a cell: 8, 4, 2, 1 by stage."""
        return CELL // self.stride

    def halved(self, counted: Optional[Tensor] = None) -> 'Grid':
        """Return the next stage's grid."""
        return replace(self, height=self.height // 2, width=self.width // 2, stride=self.stride * 2, counted=counted,
                       site_rows=None)


class Execution:
    """How a forward visits sites. Subclasses implement the four operations; all are differentiable."""

    name: str
    masks = True  # whether the execution accepts visible cells

    def enter(self, images: Tensor, visible_cells: Optional[Tensor], stem: nn.Conv2d) -> Tuple[Tensor, Grid]:
        """Run the stride-4 stem: images (B, Cin, H, W) to sites (B, N, C) and the first stage's grid."""
        raise NotImplementedError

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tensor:
        """Convolve each channel of sites (B, N, C) over its neighbours."""
        raise NotImplementedError

    def depthwise_norm(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
        """Normalise the result of :meth:`depthwise`, site by site."""
        return norm(self.depthwise(sites, grid, conv))

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> Tuple[Tensor, Grid]:
        """Run a 2x2 convolution of stride 2: sites (B, N, Cin) to (B, N', Cout) and the next grid."""
        raise NotImplementedError

    def leave(self, sites: Tensor, grid: Grid) -> Tensor:
        """Lay sites (B, N, C) out as a map (B, C, H, W) in channels-last memory, zero at hidden sites."""
        raise NotImplementedError


def sites_to_map(sites: Tensor, grid: Grid) -> Tensor:
    """View raster-ordered sites (B, H * W, C) as a map (B, C, H, W); no copy."""
    return sites.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)


def map_to_sites(features_BCHW: Tensor) -> Tensor:
    """View a map (B, C, H, W) as raster-ordered sites (B, H * W, C); no copy when it is channels-last."""
    return features_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def check_images(images: Tensor, visible_cells: Optional[Tensor]) -> None:
    """Raise ``ValueError`` for pictures or visible cells that no execution can visit.

    Only shapes and dtypes are looked at: reading values would wait for the GPU.
    """
    if images.ndim != 4:
        raise UserError(f'images has shape {tuple(images.shape)}: expected (B, channels, height, width)')
    height, width = images.shape[-2:]
    if visible_cells is None:
        if min(height, width) < CELL:
            raise UserError(f'images are {height}x{width} pixels: the backbone needs at least {CELL}x{CELL}')
        return
    if height % CELL or width % CELL:
        raise UserError(f'images are {height}x{width} pixels: with visible_cells both sides must be multiples of '
                        f'{CELL}; resize or crop to {max(height // CELL, 1) * CELL}x{max(width // CELL, 1) * CELL}')
    num_cells = (height // CELL) * (width // CELL)
    shape = tuple(visible_cells.shape)
    if visible_cells.dtype != torch.long or len(shape) != 2 or shape[0] != images.shape[0]:
        raise UserError(f'visible_cells is {visible_cells.dtype} of shape {shape}: expected torch.int64 of shape '
                        f'({images.shape[0]}, K); mask_to_visible_cells makes it from a bool mask')
    if not 1 <= shape[1] <= num_cells:
        raise UserError(f'visible_cells shows {shape[1]} cells an image: expected 1 to {num_cells} for '
                        f'{height}x{width} pixels')


def mask_to_visible_cells(visible: Tensor) -> Tensor:
    """Turn a bool mask (B, H/32, W/32), True = visible, into visible cells (B, K); waits for the GPU once.

    Examples:
        >>> mask_to_visible_cells(torch.tensor([[[True, False], [False, True]]]))
        tensor([[0, 3]])

    Raises:
        ValueError: If the mask is not bool, hides everything, or images show different numbers of cells.
    """
    if visible.dtype != torch.bool or visible.ndim != 3:
        raise UserError(f'visible is {visible.dtype} of shape {tuple(visible.shape)}: expected bool of shape '
                        '(B, height / 32, width / 32), True = visible')
    counts = sorted(set(visible.flatten(1).sum(1).tolist()))
    if len(counts) != 1 or counts[0] == 0:
        raise UserError(f'visible shows {counts} cells an image: every image must show the same number, at least 1')
    return visible.flatten(1).nonzero()[:, 1].view(len(visible), -1)
