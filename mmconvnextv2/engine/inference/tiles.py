"""Tiles of an image that does not fit into memory, and how their predictions blend.

Tiles lie on a regular grid and share ``overlap`` pixels with their neighbours. Weights of a tile's logits rise and fall
as a squared sine over the shared pixels, so weights of all tiles sum to 1 everywhere.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor

from ...datasets.rasters import Raster, Window
from ...utils.config import reads_files, steps_of_test
from ...utils.errors import UserError
from .images import to_pipeline_image
from .model import Model

SMALLEST = 32  # pixels along a side that the backbone needs
GEOMETRY = ('Resize', 'Pad', 'Flip', 'Crop', 'Rotate')  # in names of pipeline steps that change an image's size


class Tile(NamedTuple):
    """One tile of a grid.

    Attributes:
        row (int): Row in the grid.
        column (int): Column in the grid.
        window (Window): Pixels that the model reads. At the image's end it is moved back to the full size.
        part (Window): Pixels that its predictions contribute to.
        owned (Window): Pixels that are complete when this tile and those before it in raster order are predicted.
    """

    row: int
    column: int
    window: Window
    part: Window
    owned: Window

    @property
    def name(self) -> str:
        """Name of its files."""
        return f'{self.row:05}-{self.column:05}'


def tile_grid(height: int, width: int, side: int, overlap: int = 0) -> list[Tile]:
    """Return the tiles of an image in raster order; an image that is smaller than a tile has one.

    Args:
        height (int): Rows of the image.
        width (int): Columns of the image.
        side (int): Pixels along a tile's side, at least 32.
        overlap (int): Pixels that neighbours share, 0 to half of the side. Defaults to 0.

    Raises:
        ValueError: If side or overlap are out of range.
    """
    if side < SMALLEST:
        raise UserError(f'--tile {side}: expected at least {SMALLEST} pixels, which the backbone needs')
    if not 0 <= overlap <= side // 2:
        raise UserError(f'--overlap {overlap}: expected 0 to {side // 2} pixels, half of --tile {side}')
    return [
        Tile(row, column, *(Window(high.top, wide.left, high.height, wide.width) for high, wide in zip(rows, columns)))
        for row, rows in enumerate(_spans(height, side, overlap))
        for column, columns in enumerate(_spans(width, side, overlap))
    ]


def _spans(length: int, side: int, overlap: int) -> list[tuple[Window, Window, Window]]:
    """Return window, part and owned span of each tile along one side, as squares on the diagonal."""
    step, spans = side - overlap, []
    count = max(math.ceil((length - overlap) / step), 1)
    for index in range(count):
        start, is_last = index * step, index == count - 1
        read = max(min(start, length - side), 0)
        ends = min(read + side, length), min(start + side, length), length if is_last else start + step
        starts = read, start, start
        spans.append(tuple(Window(first, first, end - first, end - first) for first, end in zip(starts, ends)))
    return spans


def blending_weights(length: int, overlap: int, is_first: bool, is_last: bool) -> np.ndarray:
    """Return the weights of a tile's pixels along one side, float32 (length, ).

    They rise over the first ``overlap`` pixels, except in the first tile, and fall over the last ones, except in the
    last tile. Where two tiles overlap, their weights sum to 1.
    """
    weights = np.ones(length, np.float32)
    if overlap:
        rise = np.sin((np.arange(overlap) + 0.5) * (math.pi / 2 / overlap)) ** 2
        if not is_first:
            weights[:overlap] = rise
        if not is_last:
            weights[-overlap:] = 1 - rise
    return weights


class TileModel:
    """A detector or segmentor on windows of a raster, at the raster's own resolution.

    The model's test pipeline and preprocessor apply, except for steps that change an image's size. Pixels without data
    are 0 after normalisation, as padding is.

    Args:
        model (Model): Detector or segmentor.

    Attributes:
        left_out (list[str]): Steps of the pipeline that are not applied.

    Raises:
        ValueError: If the model is neither.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.module, self.scope = model, model.module, model.config.default_scope
        if self.scope not in ('mmdet', 'mmseg'):
            raise UserError(f'default_scope={self.scope!r}: tiles are predicted by detectors and segmentors')
        steps = steps_of_test(model.config)
        first = steps[0]['type'].rpartition('.')[2] if reads_files(steps[0]) else ''
        self.reads_floats = first == 'LoadMultiChannelImage'
        steps = steps[1:] if first else steps
        self.left_out = [one['type'] for one in steps if any(name in one['type'] for name in GEOMETRY)]
        with DefaultScope.overwrite_default_scope(self.scope):
            self._transform = Compose([one for one in steps if one['type'] not in self.left_out])

    def prepare(self, raster: Raster, window: Window) -> tuple[dict[str, Any], np.ndarray]:
        """Read a window as the model's input.

        Returns:
            tuple: Batch of one image as the preprocessor returns it, and bool (h, w), False at pixels without data.

        Raises:
            ValueError: If the window cannot be read, or its values are not those of an image.
        """
        values, valid = raster.read(window)
        if self.reads_floats:
            image = values.astype(np.float32) / np.float32(257 if values.dtype == np.uint16 else 1)
            image = image[..., ::-1] if image.shape[2] == 3 else image
        else:
            try:
                image = to_pipeline_image(values, self.model.channels)
            except UserError as error:
                raise UserError(f'{raster.path}: {error}; LoadMultiChannelImage reads other values') from error
        size = image.shape[:2]
        results = dict(
            img=image, img_path=raster.path, img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)
        )
        with DefaultScope.overwrite_default_scope(self.scope), torch.inference_mode():
            data = self.module.data_preprocessor(pseudo_collate([self._transform(results)]), False)
            if not valid.all():
                inputs, (height, width) = data['inputs'], size
                nothing = torch.nan if getattr(self.module.backbone, 'valid_sites', False) else 0.0
                data['inputs'] = torch.full_like(inputs, nothing)
                known = torch.from_numpy(valid).to(inputs.device)
                data['inputs'][..., :height, :width] = torch.where(known, inputs[..., :height, :width], nothing)
        return data, valid

    def logits(self, data: dict[str, Any]) -> Tensor:
        """Return the logits (C, H, W) of a batch of one image, with the preprocessor's padding."""
        with self.model._lock, torch.inference_mode(), DefaultScope.overwrite_default_scope(self.scope):
            metas = [sample.metainfo for sample in data['data_samples']]
            return self.module.encode_decode(data['inputs'], metas)[0].float()

    def instances(self, data: dict[str, Any]) -> Any:
        """Return the instances of a batch of one image, mmengine's ``InstanceData`` on the CPU, in its pixels."""
        with self.model._lock, torch.inference_mode(), DefaultScope.overwrite_default_scope(self.scope):
            (sample,) = self.module.predict(data['inputs'], data['data_samples'])
            return sample.pred_instances.cpu()
