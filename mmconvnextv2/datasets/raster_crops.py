"""Random crops of rasters that do not fit into memory, for training."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ..utils.errors import FileError, UserError
from .rasters import IGNORED, Raster, Window


@TRANSFORMS.register_module()
class LoadRasterCrop(BaseTransform):
    """Read a random window of a GeoTIFF or ``.npy`` array, and the same window of its label raster.

    It takes the places of the steps that load an image, load its labels and crop both at random; only the blocks below
    the window are read. Values are those of ``LoadMultiChannelImage``: float32, 16 bits divided by 257, three channels
    in reversed order, as ``bgr_to_rgb=True`` expects. The window is drawn from numpy's global generator, again if too
    few of its pixels have data.

    Required keys: ``img_path``, optionally ``seg_map_path``, ``reduce_zero_label`` and ``label_map``. Added keys:
    ``img`` (h, w, channels), ``img_shape``, ``ori_shape``, and with labels ``gt_seg_map`` (h, w), uint8, 255 where the
    image or the labels have no data. An example for MMSegmentation::

        train_pipeline = [
            dict(type='LoadRasterCrop', size=512, channels=12, num_classes=6),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs')
        ]
        dataset = dict(
            type='BaseSegDataset', img_suffix='.tif', seg_map_suffix='.tif', pipeline=train_pipeline, ...)

    An iteration-based loop draws a new window each time that it visits a file.

    Args:
        size (int | tuple[int, int]): Rows and columns of the window, as many as the image has if that is fewer.
        channels (int): Bands that the model reads.
        bands (Sequence[int], optional): Numbers of the bands to read, from 1. Defaults to None, all but an alpha band.
        num_classes (int, optional): Number of classes, to reject labels that are out of range. Defaults to None.
        min_data (float): Least share of a window's pixels with data, 0 to 1. Defaults to 0.5.
        tries (int): Windows to draw at most until one has as many; the last one is taken in any case. Defaults to 10.
        fill (float | Sequence[float]): Value of pixels without data, one or one per channel; the ``mean`` of the
            preprocessor makes them 0 after normalisation. Defaults to 0.

    Raises:
        ValueError: If an argument is out of range; while reading, if image and labels have different sizes, or labels
            are out of range. The message names the file.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        channels: int,
        bands: Sequence[int] | None = None,
        num_classes: int | None = None,
        min_data: float = 0.5,
        tries: int = 10,
        fill: float | Sequence[float] = 0.0,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f'size={size!r} of LoadRasterCrop: expected rows and columns, each at least 1')
        if not 0 <= min_data <= 1 or tries < 1:
            raise UserError(f'min_data={min_data}, tries={tries} of LoadRasterCrop: expected 0 to 1, and at least 1')
        self.fill = np.asarray(fill, np.float32)
        if self.fill.ndim > 1 or self.fill.size not in (1, channels):
            raise UserError(f'fill={fill!r} of LoadRasterCrop: expected one value, or {channels}, one per channel')
        self.channels, self.bands, self.num_classes = channels, bands, num_classes
        self.min_data, self.tries = min_data, tries

    def transform(self, results: dict) -> dict:
        """Read a window and add it to the results."""
        path = str(results['img_path'])
        with Raster(path, self.bands) as raster:
            if raster.num_bands != self.channels:
                raise UserError(
                    f'{path} has {raster.num_bands} bands, but LoadRasterCrop has channels={self.channels}: choose '
                    'bands, or set channels, model.backbone.in_channels and the lengths of the mean and std'
                )
            for _ in range(self.tries):
                window = self._draw(raster.height, raster.width)
                values, valid = raster.read(window)
                if valid.mean() >= self.min_data:
                    break
            size = raster.height, raster.width
        scale = 257 if values.dtype == np.uint16 else 1
        image = values.astype(np.float32) / np.float32(scale)
        if not np.isfinite(image).all():
            raise FileError(f'{path} holds values that are not finite in float32')
        image = np.where(valid[..., None], image, self.fill).astype(np.float32)
        results['img'] = np.ascontiguousarray(image[..., ::-1] if self.channels == 3 else image)
        results['img_shape'] = results['ori_shape'] = values.shape[:2]
        if 'seg_map_path' in results:
            results['gt_seg_map'] = self._read_labels(results, window, size, valid)
            results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _draw(self, height: int, width: int) -> Window:
        high, wide = min(self.size[0], height), min(self.size[1], width)
        return Window(np.random.randint(height - high + 1), np.random.randint(width - wide + 1), high, wide)

    def _read_labels(self, results: dict, window: Window, size: tuple[int, int], valid: np.ndarray) -> np.ndarray:
        path = str(results['seg_map_path'])
        with Raster(path) as raster:
            raster.palette = None  # class indices, not colours
            if (raster.height, raster.width) != size or raster.num_bands != 1:
                raise UserError(
                    f'{path} has {raster.height} x {raster.width} pixels and {raster.num_bands} bands, its image '
                    f'{results["img_path"]} has {size[0]} x {size[1]} pixels: expected the same size and one band'
                )
            labels, known = raster.read(window)
        labels = labels[..., 0].astype(np.int64)
        known = known & valid & (labels != IGNORED)
        if results.get('reduce_zero_label'):
            known &= labels != 0
            labels = labels - 1
        mapped = results.get('label_map') or {}
        reduced = labels.copy()
        for old, new in mapped.items():
            labels[reduced == old] = new
        found = labels[known]
        wrong = found[(found < 0) | (found >= (IGNORED if self.num_classes is None else self.num_classes))]
        if wrong.size:
            raise UserError(
                f'{path} has labels {sorted(set(wrong.tolist()))[:5]} in {window}: expected 0 to '
                f'{(self.num_classes or IGNORED) - 1} after reduce_zero_label and label_map, or {IGNORED} for ignored'
            )
        return np.where(known, labels, IGNORED).astype(np.uint8)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, channels={self.channels}, bands={self.bands})'
