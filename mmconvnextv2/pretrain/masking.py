"""Masking of cells, sampled on the CPU in the data pipeline (arXiv 2301.00808, section 3.1).

A mask is a list of visible cells. Their number is a shape, so reading it does not synchronise with the GPU.
mmpretrain's heads use the opposite convention (1 = removed); no such mask is passed on from here.

Patterns and regions are orders of all cells of an image, of which the first K are visible. So any K of a range of mask
ratios can be chosen when the batch is known, and all its images show the same number.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature

import mmcv
import mmengine.fileio as fileio
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_random_params
from mmpretrain.datasets.transforms import RandomResizedCrop
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..datasets.formats import read_label_png
from ..models.execution import CELL
from ..utils.errors import UserError
from ..utils.moved import moved_names, register_renamed
from .multichannel import read_array

FREE, SHOWN, HIDDEN = 0, 1, 2  # pixels of a map of regions: as the pattern has it, visible, masked
TRIES = 100  # of placing a block


def num_visible(num_cells: int, mask_ratio: float, cell: int = CELL) -> int:
    """Return the number of visible cells of an image: ``floor(num_cells * (1 - mask_ratio))``, 19 of 49 at 0.6.

    Raises:
        ValueError: If the ratio masks no cell, or every cell.
    """
    # The margin keeps a product that rounding leaves just below an integer, such as 10 * (1 - 0.9), from losing a cell
    visible = math.floor(num_cells * (1 - mask_ratio) + 1e-9)
    if not 0 < visible < num_cells:
        state = 'every cell' if visible <= 0 else 'no cell'
        raise UserError(f'mask_ratio={mask_ratio} masks {state} of {num_cells}: {_workable_ratios(num_cells, cell)}')
    return visible


def _workable_ratios(num_cells: int, cell: int) -> str:
    """Describe the valid range of ratios, rounded down to enough digits that the printed ratios are valid."""
    if num_cells < 2:
        return f'an image needs two cells of {cell}x{cell} pixels or more; take larger images'
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


def random_order(rows: int, columns: int) -> np.ndarray:
    """Return all cells of an image in random order, int64 (rows * columns, )."""
    return np.random.permutation(rows * columns)


def block_order(
    rows: int, columns: int, scale: tuple[float, float] = (0.1, 0.25), aspect: tuple[float, float] = (0.5, 2.0)
) -> np.ndarray:
    """Return all cells in an order whose last ones form rectangles, so that blocks of neighbours are masked.

    Blocks are placed one after the other, as in BEiT (arXiv 2106.08254, section 2.3) and I-JEPA (arXiv 2301.08243);
    they may overlap. The last one that fits into the mask ratio is cut row by row.

    Args:
        rows (int): Rows of cells.
        columns (int): Columns of cells.
        scale (tuple[float, float]): Smallest and largest share of the cells in a block. Defaults to (0.1, 0.25).
        aspect (tuple[float, float]): Smallest and largest height / width of a block. Defaults to (0.5, 2.0).
    """
    masked: dict[int, None] = {}  # an ordered set
    for _ in range(TRIES):
        area = np.random.uniform(*scale) * rows * columns
        ratio = math.exp(np.random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height = min(max(round(math.sqrt(area * ratio)), 1), rows)
        width = min(max(round(math.sqrt(area / ratio)), 1), columns)
        top, left = np.random.randint(rows - height + 1), np.random.randint(columns - width + 1)
        block = np.arange(rows * columns).reshape(rows, columns)[top : top + height, left : left + width]
        masked.update(dict.fromkeys(block.flatten().tolist()))
        if len(masked) == rows * columns:
            break
    never = [cell for cell in np.random.permutation(rows * columns).tolist() if cell not in masked]
    return np.array([*never, *reversed(masked)], np.int64)


PATTERNS: dict[str, Callable[..., np.ndarray]] = {'random': random_order, 'blocks': block_order}


@TRANSFORMS.register_module()
class FCMAEMaskGenerator(BaseTransform):
    """Sample the visible cells of an image.

    Required key: ``img`` (H, W, channels). Optional key: ``gt_seg_map`` (H, W), a map of regions, 1 where a cell must
    be visible, 2 where it must be masked, 0 elsewhere; one such pixel decides for its cell, and 2 wins. Added keys:
    ``visible_cells``, int64 array (K, ) of ascending raster indices of the visible cells; ``cell_size``; with a range
    of mask ratios ``cell_order``, all cells, of which the first are visible.

    Cells are sampled with numpy's global generator, which the data set seeds for each image.

    Optional key: ``valid_pixels``, bool (H, W), of :class:`mmconvnextv2.datasets.valid_pixels.LoadValidPixels`. The
    ratio then holds among cells with a valid pixel, at least one of which is visible. Cells without one fill the list
    up to K, so that K depends on the image's size alone; a backbone with ``valid_sites=True`` does not read them.

    Args:
        mask_ratio (float | Sequence[float]): Share of masked cells, in (0, 1), or the smallest and the largest one. Of
            a range, each batch has one ratio, that of its first image, since all its images must show the same number
            of cells; see :func:`stack_visible_cells`. Defaults to 0.6.
        num_ratios (int): Number of ratios that a range is cut into, at equal distances. Each is a shape: compiled code
            and timed kernels are prepared once for each, so keep it small. Defaults to 4.
        cell (int): Side of a cell in pixels, eight times the stride of the backbone's stem: 8, 16 or 32. Defaults to
            32.
        pattern (dict | str): ``'random'``; or ``'blocks'``, contiguous rectangles, or ``dict(type='blocks', ...)`` with
            the arguments of :func:`block_order`. Defaults to ``'random'``.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(
        self,
        mask_ratio: float | Sequence[float] = 0.6,
        num_ratios: int = 4,
        cell: int = CELL,
        pattern: dict | str = 'random',
    ) -> None:
        ends = [mask_ratio] if isinstance(mask_ratio, (int, float)) else list(mask_ratio)
        if len(ends) > 2 or not all(0 < ratio < 1 for ratio in ends) or ends != sorted(ends) or not ends:
            raise UserError(
                f'mask_ratio={mask_ratio}: expected a share of masked cells in (0, 1), or the smallest and the largest'
            )
        if num_ratios < 1 or cell < 1:
            raise UserError(f'num_ratios={num_ratios}, cell={cell} of FCMAEMaskGenerator: expected positive integers')
        self.mask_ratio, self.cell = mask_ratio, cell
        distinct = num_ratios if len(ends) == 2 and ends[0] < ends[1] else 1
        self.ratios = np.linspace(ends[0], ends[-1], distinct).tolist()
        arguments = dict(type=pattern) if isinstance(pattern, str) else dict(pattern)
        kind = arguments.pop('type', None)
        if kind not in PATTERNS:
            raise UserError(f'pattern={pattern!r} of FCMAEMaskGenerator: choose from {sorted(PATTERNS)}')
        _check_pattern(kind, arguments)
        self.pattern, self._order = pattern, partial(PATTERNS[kind], **arguments)

    def transform(self, results: dict) -> dict:
        """Add ``visible_cells`` to the results.

        Raises:
            ValueError: If a side is not a multiple of the cell, the ratio masks all cells or none, or regions leave too
                few cells.
        """
        height, width = results['img'].shape[:2]
        if height % self.cell or width % self.cell:
            raise UserError(
                f'the pipeline gives images of {height}x{width} pixels: FCMAE needs multiples of '
                f"{self.cell}; change the size of the crop before 'FCMAEMaskGenerator'"
            )
        rows, columns = height // self.cell, width // self.cell
        try:
            counts = [num_visible(rows * columns, ratio, self.cell) for ratio in self.ratios]
        except ValueError as error:
            raise UserError(f'images of {height}x{width} pixels: {error}') from None
        count = counts[np.random.randint(len(counts))] if len(counts) > 1 else counts[0]
        order = self._order(rows, columns)
        if results.get('valid_pixels') is not None:
            order = self._with_valid(order, counts, results['valid_pixels'], (height, width))
        if 'gt_seg_map' in results:
            order = self._with_regions(order, results, counts)
        if len(counts) > 1:
            results['cell_order'] = order
        # Of fixed size: every image of a batch has the same number of visible cells
        results['visible_cells'] = np.sort(order[:count]).astype(np.int64)
        results['cell_size'] = self.cell
        return results

    def _with_valid(
        self, order: np.ndarray, counts: Sequence[int], valid: np.ndarray, shape: tuple[int, int]
    ) -> np.ndarray:
        """Reorder cells so that the first K of each count have a share of ``1 - ratio`` of the valid ones."""
        if valid.shape != shape:
            raise UserError(
                f'valid_pixels has shape {valid.shape}, but the image has {shape} pixels: put the steps that resize or '
                "crop it into dict(type='WithValidPixels', transforms=[...])"
            )
        cell = self.cell
        has_valid = valid.reshape(shape[0] // cell, cell, -1, cell).any((1, 3)).flatten()
        cells, fillers, taken, filled, parts = order[has_valid[order]], order[~has_valid[order]], 0, 0, []
        for ratio, count in sorted(zip(self.ratios, counts), reverse=True):  # from few visible cells to many
            share = math.floor(len(cells) * (1 - ratio) + 1e-9)
            # floor(n (1 - r)) - floor(v (1 - r)) is at most n - v: there are always enough fillers
            shown = max(min(max(share, 1), len(cells), count - filled), taken)
            parts += [cells[taken:shown], fillers[filled : count - shown]]
            taken, filled = shown, count - shown
        return np.concatenate([*parts, cells[taken:], fillers[filled:]])

    def _with_regions(self, order: np.ndarray, results: dict, counts: Sequence[int]) -> np.ndarray:
        """Move the cells that must be visible to the start of an order, and those that must be masked to its end."""
        size, path = results['img'].shape[:2], results.get('img_path', 'an image')
        cells = regions_of_cells(results['gt_seg_map'], size, self.cell)
        shown, hidden = (int((cells == code).sum()) for code in (SHOWN, HIDDEN))
        if len(order) - hidden < max(counts):
            raise UserError(
                f'the regions of {path} mask {hidden} of {len(order)} cells, but mask_ratio={self.mask_ratio} needs '
                f'{max(counts)} visible ones: mark fewer pixels with {HIDDEN}, or raise mask_ratio'
            )
        if shown > min(counts):
            raise UserError(
                f'the regions of {path} show {shown} of {len(order)} cells, but mask_ratio={self.mask_ratio} has '
                f'only {min(counts)} visible ones: mark fewer pixels with {SHOWN}, or lower mask_ratio'
            )
        kinds = cells[order]
        return np.concatenate([order[kinds == code] for code in (SHOWN, FREE, HIDDEN)])

    def __repr__(self) -> str:
        parts = [f'mask_ratio={self.mask_ratio}']
        parts += [f'num_ratios={len(self.ratios)}'] if len(self.ratios) > 1 else []
        parts += [f'cell={self.cell}'] if self.cell != CELL else []
        parts += [f'pattern={self.pattern!r}'] if self.pattern != 'random' else []
        return f'{type(self).__name__}({", ".join(parts)})'


register_renamed(TRANSFORMS, 'DrawVisibleCells', FCMAEMaskGenerator)


def _check_pattern(kind: str, arguments: dict) -> None:
    """Raise ``ValueError`` for arguments that a pattern does not have, or ranges that it cannot use."""
    known = list(signature(PATTERNS[kind]).parameters)[2:]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UserError(f'pattern=dict(type={kind!r}, ...) does not know {", ".join(unknown)}: choose from {known}')
    for name, (low, high) in arguments.items():
        if not 0 < low <= high or (name == 'scale' and high > 1):
            raise UserError(f'pattern {kind!r}: {name}={(low, high)}, expected a range of positive numbers, low first')


def regions_of_cells(regions: np.ndarray, size: tuple[int, int], cell: int) -> np.ndarray:
    """Return the kind of each cell, int (num_cells, ): the largest of its pixels, so one pixel decides.

    Args:
        regions (np.ndarray): Map of ``FREE``, ``SHOWN`` and ``HIDDEN``, (H, W).
        size (tuple[int, int]): Height and width of the image, multiples of ``cell``.
        cell (int): Side of a cell in pixels.

    Raises:
        ValueError: If the map has another size or other values.
    """
    if regions.shape != size:
        raise UserError(
            f'the map of regions has {regions.shape} pixels, but the image {size}: it must be resized, cropped and '
            'flipped along, as by RandomResizedCropWithRegions and RandomFlip'
        )
    unknown = set(np.unique(regions).tolist()) - {FREE, SHOWN, HIDDEN}
    if unknown:
        raise UserError(
            f'the map of regions holds {sorted(unknown)}: expected {SHOWN} where a cell must be visible, {HIDDEN} '
            f'where it must be masked, {FREE} elsewhere'
        )
    rows, columns = size[0] // cell, size[1] // cell
    return regions.reshape(rows, cell, columns, cell).max(axis=(1, 3)).flatten().astype(np.int64)


@TRANSFORMS.register_module()
class LoadRegions(BaseTransform):
    """Read the map of regions of an image, for ``FCMAEMaskGenerator``.

    Required keys: ``img_path``, ``img``. Added key: ``gt_seg_map`` (H, W), uint8. An image without a file has no
    regions. The map of ``images/a/b.jpg`` is ``FOLDER/a/b.png`` or ``FOLDER/a/b.npy``.

    Args:
        folder (str): Folder of the maps: PNGs of one channel, or arrays (H, W).
        image_folder (str): Folder of the images, ``data_root`` of the data set.

    Raises:
        OSError: If a map cannot be read.
        ValueError: If a map does not have the size of its image.
    """

    def __init__(self, folder: str, image_folder: str) -> None:
        self.folder, self.image_folder = folder, image_folder

    def transform(self, results: dict) -> dict:
        """Add the map to the results."""
        stem = os.path.splitext(os.path.relpath(results['img_path'], self.image_folder))[0]
        size = results['img'].shape[:2]
        regions = np.zeros(size, np.uint8)
        for ending in ('.png', '.npy'):
            path = os.path.join(self.folder, stem + ending)
            if os.path.isfile(path):
                regions = read_label_png(path) if ending == '.png' else read_array(fileio.get(path), path)
        if regions.shape != size:
            raise UserError(f'{stem}: the map of regions in {self.folder} is {regions.shape}, the image {size} pixels')
        results['gt_seg_map'] = regions.astype(np.uint8)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folder={self.folder!r}, image_folder={self.image_folder!r})'


@TRANSFORMS.register_module()
class RandomResizedCropWithRegions(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``, which crops and resizes ``gt_seg_map`` along with the image."""

    def transform(self, results: dict) -> dict:
        """Crop and resize image and map."""
        with cache_random_params(self):
            after = super().transform(dict(results))
            top, left, height, width = self.rand_crop_params(results['img'])  # those of the call above
        cropped = results['gt_seg_map'][top : top + height, left : left + width]
        after['gt_seg_map'] = mmcv.imresize(cropped, self.scale[::-1], interpolation='nearest', backend='cv2')
        return after


def stack_visible_cells(data_samples: Sequence, device: torch.device, cell: int | None = None) -> Tensor:
    """Stack the ``visible_cells`` of a batch to a long tensor (B, K) on ``device``.

    If the samples have a ``cell_order``, K is the number of visible cells of the first one, and each image shows the
    first K of its order. The ratios of a batch therefore depend on the seed, the epoch and its first image alone. Each
    process of a distributed run has its own.

    Args:
        data_samples (Sequence): Data samples of the batch.
        device (torch.device): Device of the result.
        cell (int, optional): Side of the model's cells in pixels, to be compared with that of the samples. Defaults to
            None, no comparison.

    Raises:
        ValueError: If a sample has none, samples have different numbers of visible cells, or cells of another size.
    """
    cells: list[np.ndarray] = [sample.metainfo.get('visible_cells') for sample in data_samples]
    if any(one is None for one in cells):
        raise UserError(
            "a data sample has no 'visible_cells': put dict(type='FCMAEMaskGenerator') before "
            "'PackInputs', and 'visible_cells' in its meta_keys"
        )
    sides = {sample.metainfo.get('cell_size', cell) for sample in data_samples} - {cell}
    if cell is not None and sides:
        raise UserError(
            f'FCMAEMaskGenerator has cell={sides.pop()}, but the cells of model.backbone have {cell} pixels, eight '
            f'times the stride of its stem: set cell={cell}'
        )
    orders = [sample.metainfo.get('cell_order') for sample in data_samples]
    if all(one is not None for one in orders):
        cells = [np.sort(order[: len(cells[0])]) for order in orders]
    if len({len(one) for one in cells}) != 1:
        raise UserError(
            f'the images of a batch show {sorted({len(one) for one in cells})} cells: expected the same number in '
            "each; with a range of mask ratios, put 'cell_order' in meta_keys of 'PackInputs'"
        )
    return torch.from_numpy(np.stack(cells)).to(device, non_blocking=True)


__getattr__ = moved_names(__name__)
