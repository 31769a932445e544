"""Loading of semantic segmentation labels for MMSegmentation, with checks.

mmseg silently wraps labels above 255 to other values and accepts labels whose size differs from their image's.
Out-of-range labels fail later in the loss, without the file name.
"""

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from ..utils.errors import UserError

IGNORED = 255


@TRANSFORMS.register_module()
class LoadCheckedLabels(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` that rejects invalid labels, for training, validation and test.

    Args:
        num_classes (int): Number of classes of the model. After ``reduce_zero_label``, labels must be less than this,
            or 255 for ignored.
        kwargs: See mmseg's ``LoadAnnotations``.

    Raises:
        ValueError: While reading, if labels are out of range, of another size than the image, or in colour; the
            message names the file.
    """

    def __init__(self, num_classes: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        """Read the labels of an image; do nothing if it has none, as with mmseg's inferencers."""
        return super().transform(results) if 'seg_map_path' in results else results

    def _load_seg_map(self, results: dict) -> None:
        path = results['seg_map_path']
        labels = mmcv.imfrombytes(
            fileio.get(path, backend_args=self.backend_args), flag='unchanged', backend=self.imdecode_backend
        )
        if labels is None:
            raise UserError(f'{path} cannot be read as an image: replace it, or remove it from the data')
        labels = labels.squeeze()
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f'{path} has values of type {labels.dtype}: expected integers, one class index per pixel')
        if labels.ndim != 2:
            raise UserError(
                f'{path} has shape {labels.shape}: expected one channel with a class index per pixel, '
                'not the colours of a palette'
            )
        size = tuple(results.get('ori_shape', results.get('img_shape'))[:2])  # before any resizing
        if labels.shape != size:
            raise UserError(
                f'{path} has {labels.shape} rows and columns, its image {results["img_path"]} has '
                f'{size}: labels and image must have the same size'
            )
        reduces = results['reduce_zero_label'] if self.reduce_zero_label is None else self.reduce_zero_label
        mapped = results.get('label_map') or {}
        if not mapped:
            self._check_range(labels, int(reduces), path)
        labels = labels.astype(np.uint8)
        labels = np.where(labels == IGNORED, labels, labels - np.uint8(reduces))  # uint8 arithmetic turns 0 into 255
        reduced = labels.copy()
        for old, new in mapped.items():
            labels[reduced == old] = new
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')

    def _check_range(self, labels: np.ndarray, first: int, path: str) -> None:
        last = self.num_classes + first - 1
        wrong = labels[(labels > last) & (labels != IGNORED)]
        if wrong.size or labels.min(initial=0) < 0:
            found = sorted({int(value) for value in np.unique(wrong)} or {int(labels.min())})
            raise UserError(
                f'{path} has labels {found[:5]} at {wrong.size} pixels: expected 0 to {last}, or '
                f'{IGNORED} for ignored'
                + (', where 0 is ignored too' if first else '')
                + '. Correct the file, or set num_classes and metainfo.classes'
            )
