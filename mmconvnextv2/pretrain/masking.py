"""Random masking of 32x32-pixel cells, sampled on the CPU in the data pipeline (arXiv 2301.00808, section 3.1).

A mask is a list of visible cells. Their number is a shape, so reading it does not synchronise with the GPU.
mmpretrain's heads use the opposite convention (1 = removed); no such mask is passed on from here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..models.execution import CELL
from ..utils.errors import UserError
from ..utils.moved import moved_names, register_renamed


def num_visible(num_cells: int, mask_ratio: float) -> int:
    """Return the number of visible cells of an image: ``floor(num_cells * (1 - mask_ratio))``, 19 of 49 at 0.6.

    Raises:
        ValueError: If the ratio masks no cell, or every cell.
    """
    # The margin keeps a product that rounding leaves just below an integer, such as 10 * (1 - 0.9), from losing a cell
    visible = math.floor(num_cells * (1 - mask_ratio) + 1e-9)
    if not 0 < visible < num_cells:
        state = 'every cell' if visible <= 0 else 'no cell'
        raise UserError(f'mask_ratio={mask_ratio} masks {state} of {num_cells}: {_workable_ratios(num_cells)}')
    return visible


def _workable_ratios(num_cells: int) -> str:
    """Describe the valid range of ratios, rounded down to enough digits that the printed ratios are valid."""
    if num_cells < 2:
        return f'an image needs two cells of {CELL}x{CELL} pixels or more; take larger images'
    digits = len(str(num_cells)) + 1
    low, high = (f'{count * 10**digits // num_cells / 10**digits:.{digits}f}' for count in (1, num_cells - 1))
    return f'choose {low} (masks one cell) to {high} (leaves one visible), or larger images'


def masked_cells_of(visible_cells: Tensor, num_cells: int) -> Tensor:
    """Return the masked cells, ascending: (B, K) to (B, num_cells - K).

    A sort instead of ``nonzero``, whose result has a data-dependent shape and would synchronise with the GPU.
    """
    flags = torch.zeros(len(visible_cells), num_cells, dtype=torch.int8, device=visible_cells.device)
    flags = flags.scatter(1, visible_cells, 1)  # 1 = visible
    order = flags.argsort(dim=1, stable=True)  # masked cells first; stable, so each kind stays in ascending order
    return order[:, : num_cells - visible_cells.shape[1]]


@TRANSFORMS.register_module()
class FCMAEMaskGenerator(BaseTransform):
    """Sample the visible cells of an image.

    Required key: ``img`` (H, W, channels). Added key: ``visible_cells``, int64 array (K, ) of ascending raster indices
    of the visible 32x32-pixel cells. Cells are sampled with numpy's global generator, which the data set seeds for each
    image.

    Optional key: ``valid_pixels``, bool (H, W), of :class:`mmconvnextv2.datasets.valid_pixels.LoadValidPixels`. The
    ratio then holds among cells with a valid pixel, at least one of which is visible. Cells without one fill the list
    up to K, so that K depends on the image's size alone; a backbone with ``valid_sites=True`` does not read them.

    Args:
        mask_ratio (float): Share of masked cells, in (0, 1). Defaults to 0.6.
    """

    def __init__(self, mask_ratio: float = 0.6) -> None:
        if not 0 < mask_ratio < 1:
            raise UserError(f'mask_ratio={mask_ratio}: expected a share of masked cells in (0, 1)')
        self.mask_ratio = mask_ratio

    def transform(self, results: dict) -> dict:
        """Add ``visible_cells`` to the results.

        Raises:
            ValueError: If a side is not a multiple of 32, or the ratio masks all cells or none.
        """
        height, width = results['img'].shape[:2]
        if height % CELL or width % CELL:
            raise UserError(
                f'the pipeline gives images of {height}x{width} pixels: FCMAE needs multiples of '
                f"{CELL}; change the size of the crop before 'FCMAEMaskGenerator'"
            )
        num_cells = (height // CELL) * (width // CELL)
        try:
            count = num_visible(num_cells, self.mask_ratio)
        except ValueError as error:
            raise UserError(f'images of {height}x{width} pixels: {error}') from None
        # Without replacement and of fixed size: every image of a batch has the same number of visible cells
        order = np.random.permutation(num_cells)
        visible = order[:count]
        if results.get('valid_pixels') is not None:
            visible = self._choose_valid(order, count, results['valid_pixels'], (height, width))
        results['visible_cells'] = np.sort(visible).astype(np.int64)
        return results

    def _choose_valid(self, order: np.ndarray, count: int, valid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Return ``count`` cells of a random order, of which a share of ``1 - mask_ratio`` of the valid ones."""
        if valid.shape != shape:
            raise UserError(
                f'valid_pixels has shape {valid.shape}, but the image has {shape} pixels: put the steps that resize or '
                "crop it into dict(type='WithValidPixels', transforms=[...])"
            )
        has_valid = valid.reshape(shape[0] // CELL, CELL, -1, CELL).any((1, 3)).flatten()
        cells, fillers = order[has_valid[order]], order[~has_valid[order]]
        # floor(n (1 - r)) - floor(v (1 - r)) is at most n - v: there are always enough fillers
        shown = min(max(math.floor(len(cells) * (1 - self.mask_ratio) + 1e-9), 1), len(cells))
        return np.concatenate([cells[:shown], fillers[: count - shown]])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mask_ratio={self.mask_ratio})'


register_renamed(TRANSFORMS, 'DrawVisibleCells', FCMAEMaskGenerator)


def stack_visible_cells(data_samples: Sequence, device: torch.device) -> Tensor:
    """Stack the ``visible_cells`` of a batch to a long tensor (B, K) on ``device``.

    Raises:
        ValueError: If a sample has none, or samples have different numbers of visible cells.
    """
    cells: list[np.ndarray] = [sample.metainfo.get('visible_cells') for sample in data_samples]
    if any(one is None for one in cells):
        raise UserError(
            "a data sample has no 'visible_cells': put dict(type='FCMAEMaskGenerator') before "
            "'PackInputs', and 'visible_cells' in its meta_keys"
        )
    if len({len(one) for one in cells}) != 1:
        raise UserError(
            f'the images of a batch show {sorted({len(one) for one in cells})} cells: expected the same number in each'
        )
    return torch.from_numpy(np.stack(cells)).to(device, non_blocking=True)


__getattr__ = moved_names(__name__)
