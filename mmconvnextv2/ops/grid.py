"""Geometry of a stage's sites: one frozen ``Grid`` per stage, passed to every operation that reads neighbours.

Suffixes: B images, K visible cells per image, p sites along a cell's side, h x w cells and H x W sites per image, C
channels.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

CELL = 32  # pixels along one side of a masking cell behind the stem of 4x4 patches, the stride of the last stage
SLOT_BORDER = 3  # masked cells around the table of slots: a kernel of 7 x 7 reaches 3 cells of one site
LIST_LENGTH = 50  # numbers of a cell's list of neighbours: at most 7 x 7, and how many there are


class PackedIndex:
    """Row indices that map a stage's visible sites to its maps and back, both flattened to rows of C values.

    On the CPU, gathering and scattering rows is several times faster than indexing cells. Computed once per stage and
    step.

    Args:
        visible_cells (Tensor): Visible cells, long, (B, K).
        height (int): Rows H of the stage's map.
        width (int): Columns W of the stage's map.
        patch (int): Sites p along a cell's side.

    Attributes:
        map_rows (Tensor): Row of each site in the maps (B * H * W, C); long, (B * N, ).
        site_rows (Tensor): Row of each map position in the sites (B * N, C), B * N where it is masked; long, (B, H, W).
    """

    def __init__(self, visible_cells: Tensor, height: int, width: int, patch: int) -> None:
        self.visible_cells, self.patch = visible_cells, patch
        batch = len(visible_cells)
        numbers = torch.arange(batch * height * width, device=visible_cells.device)
        cells = numbers.view(batch, height // patch, patch, width // patch, patch, 1)
        self.map_rows = cells_of(cells, visible_cells).flatten()
        order = torch.arange(len(self.map_rows), device=visible_cells.device)
        # Positions that hold no visible site keep B * N, the row of zeros that append_zero_row adds
        site_rows = torch.full_like(numbers, len(self.map_rows)).scatter(0, self.map_rows, order)
        self.site_rows = site_rows.view(batch, height, width)
        self._windows: dict[int, Tensor] = {}

    def windows(self, radius: int) -> Tensor:
        """Return the row of each site within ``radius`` of each visible cell, computed lazily.

        Long, (B * K, p + 2r, p + 2r); B * N marks a position that is masked or outside the image.
        """
        if radius not in self._windows:
            side, cells = self.patch + 2 * radius, self.visible_cells
            columns = self.site_rows.shape[2] // self.patch
            # Neighbours outside of the image are missing, too
            rows = F.pad(self.site_rows, (radius,) * 4, value=len(self.map_rows))
            rows = rows.unfold(1, side, self.patch).unfold(2, side, self.patch)  # (B, h, w, p + 2r, p + 2r)
            self._windows[radius] = rows[image_index(cells), cells // columns, cells % columns].flatten(0, 1)
        return self._windows[radius]


@dataclass(frozen=True)
class Grid:
    """Geometry of one stage's sites.

    Args:
        height (int): Rows of the stage's full map.
        width (int): Columns of the stage's full map.
        stride (int): Distance between neighbouring sites in image pixels.
        visible_cells (Tensor, optional): Raster indices of each image's visible cells, ascending; long, (B, K).
            Defaults to None, no masking.
        site_mask (Tensor, optional): Mask that is True at sites that take part in per-image sums; bool, (B, N, 1).
            Operations that read neighbours read other sites as zero. Defaults to None, all sites.
        kernels (str, optional): Implementations that may run, see :mod:`mmconvnextv2.ops.dispatch`. Defaults to None,
            the process-wide setting.
        cell_slots (tuple[Tensor], optional): Result of :func:`cell_slots`, which Triton kernels read; computed once per
            step. Defaults to None.
        neighbours (Tensor, optional): Lists that Triton kernels read where a cell is one site, see
            :func:`.depthwise_triton.with_neighbours`; computed once per step. Defaults to None.
        packed_index (PackedIndex, optional): Row indices for the CPU, computed once per stage and step. Defaults to
            None.
        cell (int): Pixels along one side of a cell, eight times the stem's stride. Defaults to 32.
    """

    height: int
    width: int
    stride: int
    visible_cells: Tensor | None = None
    site_mask: Tensor | None = None
    kernels: str | None = None
    cell_slots: tuple[Tensor, Tensor] | None = None
    neighbours: Tensor | None = None
    packed_index: PackedIndex | None = None
    cell: int = CELL

    @property
    def patch(self) -> int:
        """Sites along one side of a cell: 8, 4, 2, 1 by stage."""
        return self.cell // self.stride

    @property
    def num_sites(self) -> int:
        """Sites N of an image."""
        return self.cells.shape[1] * self.patch**2 if self.is_packed else self.height * self.width

    @property
    def is_packed(self) -> bool:
        """Whether there are only the sites of visible cells, cell by cell, rather than those of a whole map."""
        return self.visible_cells is not None

    @property
    def cells(self) -> Tensor:
        """Visible cells of a masked grid, (B, K)."""
        assert self.visible_cells is not None, 'the grid has no visible cells'
        return self.visible_cells

    def halved(self, site_mask: Tensor | None = None) -> 'Self':
        """Return the next stage's grid."""
        return replace(
            self,
            height=self.height // 2,
            width=self.width // 2,
            stride=self.stride * 2,
            site_mask=site_mask,
            neighbours=None,
            packed_index=None,
        )

    def with_packed_index(self) -> 'Self':
        """Return the grid with ``packed_index`` set."""
        return self if self.packed_index else replace(self, packed_index=self.index())

    def index(self) -> PackedIndex:
        """Return ``packed_index``, computed if it is not set."""
        return self.packed_index or PackedIndex(self.cells, self.height, self.width, self.patch)

    def kernel_arguments(self) -> tuple[int, int, int, Tensor | None, Tensor | None, Tensor | None]:
        """Return the geometry for Triton kernels: height, width, patch (0: a whole map), :func:`cell_slots`, and
        ``neighbours``."""
        if not self.is_packed:
            return self.height, self.width, 0, None, None, None
        slots = self.cell_slots
        if slots is None:
            slots = cell_slots(self.cells, self.height // self.patch, self.width // self.patch)
        return self.height, self.width, self.patch, *slots, self.neighbours


def cell_slots(visible_cells: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Invert visible cells (B, K).

    Returns:
        tuple[Tensor]: The index of each visible cell in the following table, (B, K), and the table, (B, rows + 2 *
        SLOT_BORDER, columns + 2 * SLOT_BORDER): the index of each cell among the visible ones of all images, -1 where
        it is masked; both int32. The table's border of masked cells spares kernels the checks of the map's edges.
    """
    order = torch.arange(visible_cells.numel(), dtype=torch.int32, device=visible_cells.device)
    high, wide = rows + 2 * SLOT_BORDER, columns + 2 * SLOT_BORDER
    table = order.new_full((len(visible_cells), high, wide), -1)
    index = (visible_cells // columns + SLOT_BORDER) * wide + visible_cells % columns + SLOT_BORDER
    index = index + image_index(visible_cells) * (high * wide)
    table.view(-1).scatter_(0, index.flatten(), order)
    return index.int(), table


def cells_of(features_BhpwpC: Tensor, visible_cells: Tensor) -> Tensor:
    """Gather visible cells: (B, h, p, w, p, C) and (B, K) to (B, K, p, p, C)."""
    batch, rows, patch, columns, _, channels = features_BhpwpC.shape
    index = visible_cells.view(batch, -1)
    image = image_index(index)
    return features_BhpwpC.permute(0, 1, 3, 2, 4, 5)[image, index // columns, index % columns]


def image_index(visible_cells: Tensor) -> Tensor:
    """Return the image number of each row of visible cells, (B, 1), which broadcasts against (B, K)."""
    return visible_cells.new_ones(len(visible_cells), 1).cumsum(0) - 1


def sites_to_map(sites: Tensor, grid: Grid) -> Tensor:
    """View raster-ordered sites (B, H * W, C) as a map (B, C, H, W); no copy."""
    return sites.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)


def map_to_sites(features_BCHW: Tensor) -> Tensor:
    """View a map (B, C, H, W) as raster-ordered sites (B, H * W, C); no copy when it is channels-last."""
    return features_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
