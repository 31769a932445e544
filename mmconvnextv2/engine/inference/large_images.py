"""Predictions for images that do not fit into memory: read, predicted and written in tiles."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.rasters import Raster, Window, label_dtype, write_labels
from ...utils.atomic import replacing
from ...utils.errors import UserError
from .instance_files import encode_instance, restore_instance, write_coco, write_geojson
from .merging import Instance, merge_instances
from .model import Model
from .tile_store import TileStore, naming_full_disk
from .tiles import SMALLEST, Tile, TileModel, blending_weights, tile_grid
from .whole_image import (
    WholeImage,
    backbone_of,
    check_exact,
    fixed_norms,
    fixed_pools,
    pooled_maps,
    pooling_of,
    summed_bins,
    summing_squares,
)

GRN_MODES = ('tile', 'two-pass', 'exact')


class _Silent:
    """Progress bar that shows nothing."""

    def __init__(self, total: int) -> None:
        self.total = total

    def update(self, num_tasks: int = 1) -> None:
        """Do nothing."""


def predict_raster(
    model: Model,
    path: str,
    out: str,
    tile: int = 1024,
    overlap: int | None = None,
    grn: str = 'tile',
    bands: Sequence[int] | None = None,
    score_threshold: float = 0.3,
    skip_corrupt: bool = False,
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Predict for an image of any size, in tiles; memory depends on the tile, not on the image.

    A segmentor writes ``OUT/labels/NAME.tif``, a tiled and compressed GeoTIFF of class indices, 255 where the image has
    no data. A detector writes ``OUT/instances/NAME.json``, COCO's format, and ``NAME.geojson`` with outlines in the
    coordinate system of the file. Intermediate results are in ``OUT/NAME.tiles``, from which the same call continues
    after it was interrupted at any point; its result is the same, bit for bit.

    Args:
        model (Model): Detector or segmentor, from :func:`~mmconvnextv2.load`.
        path (str): GeoTIFF, TIFF, PNG, JPEG or ``.npy``, read by windows.
        out (str): Folder to write.
        tile (int): Pixels along the side of a tile, at least 32. Defaults to 1024.
        overlap (int, optional): Pixels that neighbouring tiles share, 0 to half of the tile: logits blend over them,
            and instances are united by them. Defaults to None, an eighth of the tile.
        grn (str): Norms of GRN. ``'tile'``: those of each tile. ``'two-pass'``: those of the image, from a first pass.
            ``'exact'``: the backbone is computed as on the whole image, with its sites on disk; see
            :mod:`.whole_image`. Defaults to ``'tile'``.
        bands (Sequence[int], optional): Bands to read, from 1. Defaults to None, all.
        score_threshold (float): Instances below are left out, 0 to 1. Defaults to 0.3.
        skip_corrupt (bool): Whether to treat blocks that cannot be decoded as pixels without data. Defaults to False.
        name (str, optional): Name of the written files. Defaults to None, that of the image.
        settings (dict, optional): What the model depends on, in JSON types; results of a run with other settings are
            discarded. Defaults to None.
        progress (Callable, optional): Function of the number of steps that returns an object with ``update(n)``, such
            as mmengine's ``ProgressBar``. Defaults to None.

    Returns:
        dict: ``file``, ``size`` (rows, columns), ``georeferenced``, ``no_data`` (percent of pixels), ``corrupt``
        (windows that were skipped), ``left_out`` (steps of the test pipeline that change sizes); for a segmentor
        ``labels``, the file in ``out``, and ``classes``, percent of the pixels with data by class; for a detector
        ``coco`` and ``geojson``, and ``instances``, their number by class.

    Raises:
        ValueError: If an argument is out of range, or the file or the model cannot be used.
        RuntimeError: If the disk is full; the same call continues.
    """
    if grn not in GRN_MODES:
        raise UserError(f'grn={grn!r} is unknown: choose from {list(GRN_MODES)}')
    if not 0 <= score_threshold <= 1:
        raise UserError(f'score_threshold={score_threshold}: expected 0 to 1')
    overlap = tile // 8 if overlap is None else overlap
    runner = TileModel(model)
    name = name or os.path.splitext(os.path.basename(path))[0]
    with Raster(path, bands, model.channels, skip_corrupt) as raster:
        if min(raster.height, raster.width) < SMALLEST:
            raise UserError(
                f'{path} has {raster.height} x {raster.width} pixels: the backbone needs at least {SMALLEST}x{SMALLEST}'
            )
        state = os.stat(path)
        noted = dict(
            file=os.path.abspath(path),
            modified=[state.st_size, state.st_mtime_ns],
            tile=[tile, overlap],
            grn=grn,
            bands=raster.bands,
            score_threshold=score_threshold,
            skip_corrupt=skip_corrupt,
            run=settings,
        )
        os.makedirs(out, exist_ok=True)
        run = _Run(runner, raster, tile, overlap, grn, score_threshold)
        run.store = TileStore(os.path.join(out, f'{name}.tiles'), noted)
        found = run.predict(progress or _Silent)
        with naming_full_disk(out):
            description = run.write(out, name)
        run.store.clear()
    return dict(file=path, size=[raster.height, raster.width], **found, **description, left_out=runner.left_out)


class _Run:
    """Prediction for one raster."""

    store: TileStore

    def __init__(
        self, runner: TileModel, raster: Raster, side: int, overlap: int, grn: str, score_threshold: float
    ) -> None:
        self.runner, self.raster, self.grn, self.score_threshold = runner, raster, grn, score_threshold
        self.is_segmentor = runner.scope == 'mmseg'
        size = raster.height, raster.width
        tile_grid(*size, side, overlap)  # checks both
        self.side, self.overlap = side, overlap
        if grn == 'exact':
            check_exact(runner.module, self.is_segmentor)
            self.overlap = 0 if self.is_segmentor else overlap  # logits of neighbours are the same
        self.tiles = tile_grid(*size, side, self.overlap)
        self.last = self.tiles[-1]
        self.whole: WholeImage | None = None
        self.pooled: list[Tensor] | None = None
        self.classes = list(runner.model.classes)

    def predict(self, progress: Callable[[int], Any]) -> dict[str, Any]:
        """Predict all tiles, and return what is known of the image."""
        first = tile_grid(self.raster.height, self.raster.width, self.side) if self.grn == 'two-pass' else []
        if self.grn == 'exact':
            size = self.raster.height, self.raster.width
            self.whole = WholeImage(self.runner.module, self._pixels, size, self.side, self.store)
        passes = len(first) + (self.whole.num_windows if self.whole else 0)
        bar = progress(passes + len(self.tiles))

        def update(count: int) -> None:
            if count:  # which mmengine's bar divides by
                bar.update(count)

        norms: AbstractContextManager = nullcontext()
        if first:
            backbone = backbone_of(self.runner.module)
            sums = self._sum_squares(first, update)
            norms = fixed_norms(backbone, sums)
            self.pooled = self._pool(sums)
        if self.whole is not None:
            self.whole.compute(update)
            self.pooled = self.whole.pooled()
        with norms:
            for tile in self.tiles:
                if not self.store.has(f'done-{tile.name}.json'):
                    self._predict_tile(tile)
                update(1)
        notes = [self.store.load_json(f'done-{tile.name}.json') for tile in self.tiles]
        known = sum(note['valid'] for note in notes)
        corrupt = sorted({tuple(one) for note in notes for one in note['corrupt']})
        return dict(
            georeferenced=self.raster.is_georeferenced,
            no_data=round(100 - 100 * known / (self.raster.height * self.raster.width), 3),
            corrupt=[str(Window(*one)) for one in corrupt],
        )

    def _sum_squares(self, tiles: list[Tile], update: Callable[[int], Any]) -> dict[str, np.ndarray]:
        """Return the sums of squares of each GRN over the image, float64 (4C, ), and those of :func:`summed_bins`."""
        module = self.runner.module
        sums = self.store.load('norms.npz') or dict(place=np.zeros((), int))
        update(int(sums['place']))
        for number, tile in enumerate(tiles[int(sums['place']) :], int(sums['place']) + 1):
            data, valid = self.runner.prepare(self.raster, tile.window)
            if valid.any():
                size = data['inputs'].shape[-2:]
                with torch.inference_mode(), summing_squares(module.backbone, size, tile.window, tile.part) as squares:
                    maps = module.backbone(data['inputs'])
                whole = self.raster.height, self.raster.width
                squares.update(summed_bins(maps, module, whole, tile.window, tile.part))
                sums = {**sums, **{name: sums.get(name, 0) + one for name, one in squares.items()}}
            sums['place'] = np.asarray(number)
            self.store.save('norms.npz', **sums)
            update(1)
        return sums

    def _pool(self, sums: dict[str, np.ndarray]) -> list[Tensor] | None:
        """Return the pooled features of the image; None for heads without, and if a bin has no sites."""
        pooling = pooling_of(self.runner.module)
        bins = [sums.get(f'pool-{scale}', np.zeros((1, 1, 1))) for scale in pooling[2]] if pooling else []
        if not bins or not all(one[..., -1].all() for one in bins):
            return None
        return pooled_maps(self.runner.module, [one[..., :-1] / one[..., -1:] for one in bins])

    def _pixels(self, window: Window) -> Tensor:
        """Return the normalised pixels of a window, 0 outside of the image."""
        inside = window.intersection(Window(0, 0, self.raster.height, self.raster.width))
        data, _ = self.runner.prepare(self.raster, inside)
        pixels = data['inputs'][..., : inside.height, : inside.width]
        padding = (0, window.width - inside.width, 0, window.height - inside.height)
        return torch.nn.functional.pad(pixels, padding)

    def _predict_tile(self, tile: Tile) -> None:
        """Predict one tile, and note it as done."""
        before = len(self.raster.corrupt)
        if self.whole is None:
            data, valid = self.runner.prepare(self.raster, tile.window)
        else:
            _, valid = self.raster.read(tile.window)
            data = None
        if self.is_segmentor:
            self._segment(tile, data, valid)
        else:
            self._detect(tile, data, valid)
        known = int(valid[tile.owned.slices(tile.window[:2])].sum())
        corrupt = [list(one) for one in self.raster.corrupt[before:]]
        self.store.save_json(f'done-{tile.name}.json', dict(valid=known, corrupt=corrupt))
        # Only now: a tile that is predicted again after a kill needs them again
        used = [(tile.row, tile.column - 1, 'right'), (tile.row - 1, tile.column - 1, 'bottom')]
        self.store.remove(*(f'{side}-{row:05}-{column:05}.npz' for row, column, side in used if min(row, column) >= 0))

    def _serve(self, tile: Tile) -> tuple[dict[str, Any], Window, AbstractContextManager]:
        """Return the input of a window around a tile whose maps are on disk, the window, and the context to predict."""
        assert self.whole is not None  # of the exact mode
        window = self.whole.around(tile.window) if self.is_segmentor else self.whole.around(tile.window, 0)
        inside = window.intersection(Window(0, 0, self.raster.height, self.raster.width))
        data, _ = self.runner.prepare(self.raster, inside._replace(height=SMALLEST, width=SMALLEST))
        channels = data['inputs'].shape[1]
        shown = (inside.height, inside.width)
        size = (window.height, window.width) if self.is_segmentor else shown
        for sample in data['data_samples']:
            sample.set_metainfo(
                dict(
                    img_shape=size,
                    ori_shape=shown,
                    pad_shape=(window.height, window.width),
                    batch_input_shape=(window.height, window.width),
                )
            )
        data['inputs'] = data['inputs'].new_zeros(1).expand(1, channels, window.height, window.width)
        return data, window, self.whole.serving(window, self.pooled)

    def _segment(self, tile: Tile, data: dict[str, Any] | None, valid: np.ndarray) -> None:
        """Write the labels of the pixels that a tile owns, and its share of the logits of later tiles."""
        dtype = label_dtype(len(self.classes))
        nothing = np.iinfo(dtype).max
        if not valid.any():
            labels = np.full((tile.owned.height, tile.owned.width), nothing, dtype)
            self.store.save(f'labels-{tile.name}.npz', labels=labels)
            return
        window = tile.window
        context: AbstractContextManager = nullcontext()
        if data is None:
            data, window, context = self._serve(tile)
        elif self.pooled is not None:
            size = self.raster.height, self.raster.width
            context = fixed_pools(self.runner.module, self.pooled, size, window)
        with context:
            logits = self.runner.logits(data)[(slice(None), *tile.part.slices(window[:2]))].cpu().numpy()
        total = self._blend(tile, logits)
        if len(total) == 1:  # a binary head
            labels = (torch.from_numpy(total[0]).sigmoid() > self.runner.module.decode_head.threshold).numpy()
        else:
            labels = total.argmax(0)
        known = valid[tile.owned.slices(tile.window[:2])]
        self.store.save(f'labels-{tile.name}.npz', labels=np.where(known, labels, nothing).astype(dtype))

    def _blend(self, tile: Tile, logits: np.ndarray) -> np.ndarray:
        """Return the blended logits of the pixels that a tile owns, given those of its part (C, h, w)."""
        overlap, owned = self.overlap, tile.owned
        if not overlap:
            return logits
        is_last_row, is_last_column = tile.row == self.last.row, tile.column == self.last.column
        logits = logits * blending_weights(logits.shape[1], overlap, not tile.row, is_last_row)[:, None]
        logits *= blending_weights(logits.shape[2], overlap, not tile.column, is_last_column)
        if not is_last_column:
            self.store.save(f'right-{tile.name}.npz', logits=logits[:, :, -overlap:])
        if not is_last_row:
            self.store.save(f'bottom-{tile.name}.npz', logits=logits[:, -overlap:])

        def of(side: str, row: int, column: int) -> np.ndarray | None:
            found = self.store.load(f'{side}-{row:05}-{column:05}.npz') if min(row, column) >= 0 else None
            return None if found is None else found['logits']  # a tile without data has none

        left, above = of('right', tile.row, tile.column - 1), of('bottom', tile.row - 1, tile.column)
        corner = of('bottom', tile.row - 1, tile.column - 1)
        total = logits[:, : owned.height, : owned.width]
        if left is not None:
            total[:, :, :overlap] += left[:, : owned.height]
        if above is not None:
            total[:, :overlap] += above[:, :, : owned.width]
        if corner is not None:
            total[:, :overlap, :overlap] += corner[:, :, -overlap:]
        return total

    def _detect(self, tile: Tile, data: dict[str, Any] | None, valid: np.ndarray) -> None:
        """Write the instances of a tile."""
        if not valid.any():
            self.store.save_json(f'instances-{tile.name}.json', [])
            return
        window = tile.window
        context: AbstractContextManager = nullcontext()
        if data is None:
            data, window, context = self._serve(tile)
        with context:
            found = self.runner.instances(data)
        found = found[found.scores >= self.score_threshold]
        boxes = found.bboxes.tensor if hasattr(found.bboxes, 'tensor') else found.bboxes
        kept = []
        for number, box in enumerate(boxes.float().tolist()):
            mask = found.masks[number].numpy() if 'masks' in found else None
            one = _place(box, mask, int(found.labels[number]), float(found.scores[number]), window, tile.window, valid)
            if one is not None:
                kept.append(encode_instance(one))
        self.store.save_json(f'instances-{tile.name}.json', kept)

    def write(self, out: str, name: str) -> dict[str, Any]:
        """Write the results, and return their description."""
        return self._write_labels(out, name) if self.is_segmentor else self._write_instances(out, name)

    def _write_labels(self, out: str, name: str) -> dict[str, Any]:
        step = self.side - self.overlap
        counts = np.zeros(len(self.classes), np.int64)
        size = label_dtype(len(self.classes))

        @lru_cache(maxsize=8)
        def labels_of(row: int, column: int) -> np.ndarray:
            found = self.store.load(f'labels-{row:05}-{column:05}.npz')
            assert found is not None  # all tiles are done
            return found['labels']

        def read_block(block: Window) -> np.ndarray:
            labels = np.empty((block.height, block.width), size)
            for row in range(min(block.top // step, self.last.row), min((block.bottom - 1) // step, self.last.row) + 1):
                first = min(block.left // step, self.last.column)
                for column in range(first, min((block.right - 1) // step, self.last.column) + 1):
                    owned = self.tiles[row * (self.last.column + 1) + column].owned
                    shared = owned.intersection(block)
                    labels[shared.slices(block[:2])] = labels_of(row, column)[shared.slices(owned[:2])]
            found = np.bincount(labels.flatten(), minlength=len(counts))
            counts[:] += found[: len(counts)]
            return labels

        target = os.path.join('labels', f'{name}.tif')
        os.makedirs(os.path.join(out, 'labels'), exist_ok=True)
        with replacing(os.path.join(out, target)) as partial:
            write_labels(partial, read_block, self.raster, self.classes, self.runner.model.palette)
        share = counts / max(counts.sum(), 1) * 100
        return dict(
            labels=target, classes={one: round(float(part), 3) for one, part in zip(self.classes, share) if part}
        )

    def _write_instances(self, out: str, name: str) -> dict[str, Any]:
        found: list[Instance] = []
        for number, tile in enumerate(self.tiles):
            found += [
                restore_instance(one, number) for one in self.store.load_json(f'instances-{tile.name}.json') or []
            ]
        instances = merge_instances(found, [tile.window for tile in self.tiles])
        os.makedirs(os.path.join(out, 'instances'), exist_ok=True)
        targets = [os.path.join('instances', f'{name}.{kind}') for kind in ('json', 'geojson')]
        for target, write in zip(targets, (write_coco, write_geojson)):
            with replacing(os.path.join(out, target)) as partial:
                write(partial, instances, self.raster, self.classes)
        counts = np.bincount([one.label for one in instances], minlength=len(self.classes))
        return dict(
            coco=targets[0],
            geojson=targets[1],
            instances={one: int(count) for one, count in zip(self.classes, counts) if count},
        )


def _place(
    box: Sequence[float],
    mask: np.ndarray | None,
    label: int,
    score: float,
    window: Window,
    seen: Window,
    valid: np.ndarray,
) -> Instance | None:
    """Return an instance of a tile in pixels of the image; None if none of its pixels has data.

    Args:
        box (Sequence[float]): Box in the window.
        mask (np.ndarray, optional): bool, (H, W) of the window.
        label (int): Class index.
        score (float): Score.
        window (Window): Pixels that the model predicted.
        seen (Window): The tile, within the window.
        valid (np.ndarray): bool (h, w) of the tile.
    """
    placed = (box[0] + window.left, box[1] + window.top, box[2] + window.left, box[3] + window.top)
    if mask is None:
        left, top = (int(np.floor(one)) for one in placed[:2])
        right, bottom = (int(np.ceil(one)) for one in placed[2:])
        area = Window(top, left, bottom - top, right - left).intersection(seen)
        if not area.height * area.width or not valid[area.slices(seen[:2])].any():
            return None
        return Instance(label, score, placed, area, None, -1)
    rows, columns = seen.slices(window[:2])
    shown = mask[rows, columns][: valid.shape[0], : valid.shape[1]] & valid
    if not shown.any():
        return None
    down, across = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    area = Window(int(down[0]), int(across[0]), int(down[-1] - down[0] + 1), int(across[-1] - across[0] + 1))
    where = Window(area.top + seen.top, area.left + seen.left, area.height, area.width)
    return Instance(label, score, placed, where, shown[area.slices()].copy(), -1)


__all__ = ['GRN_MODES', 'predict_raster']
