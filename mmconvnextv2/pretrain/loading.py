"""The first steps of FCMAE's pipeline: the same pixels as those of mmcv and mmpretrain, in less time.

The crop and the flip are sampled from the size of an image alone and in the same order, so all ways to read an image
(whole, by region, reduced, packed) train on the same crops.
"""

import os
from collections.abc import Sequence

import cv2
import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmcv.transforms.utils import cache_randomness
from mmpretrain.datasets.transforms import RandomResizedCrop
from mmpretrain.registry import TRANSFORMS

from ..datasets.jpeg import JPEGImage, load_library, read_header
from ..datasets.packed_images import PackedImages
from ..datasets.resize import resize_bicubic


def is_plain(step: LoadImageFromFile) -> bool:
    """Return whether a loading step gives BGR images of 8 bits, as decoded by OpenCV."""
    return (step.color_type, step.imdecode_backend, step.to_float32) == ('color', 'cv2', False)


class PackedList(Sequence):
    """List of the images of a packed file, as a data set's list of dicts; made on access, so it takes no memory."""

    def __init__(self, packed: PackedImages) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        index = range(len(self))[index]
        return dict(img_path=os.path.join(self.packed.path, self.packed.image_path(index)), packed_index=index)


@TRANSFORMS.register_module()
class LoadImageForCrop(LoadImageFromFile):
    """Read a file, and leave decoding to the crop that follows if the file is a JPEG.

    ``FastRandomResizedCrop`` then decodes only its region where libjpeg-turbo 3 is found (``python -m mmconvnextv2
    doctor`` says so), with the same pixels. Other files, and JPEGs without that library, are read as by mmcv's
    ``LoadImageFromFile``.

    Required key: ``img_path``. Added keys: ``img``, ``img_shape``, ``ori_shape``. ``img`` is an array (H, W, 3), BGR,
    uint8, or a ``JPEGImage``, which becomes one by ``numpy.asarray``.

    Args:
        reduced (bool): Whether JPEGs of which a crop is at least twice as large as its result are decoded at a half, a
            quarter or an eighth of their size. This is faster for photographs of many megapixels, and changes pixels:
            docs/loading.md has the signal-to-noise ratio. Defaults to False.
        kwargs: Arguments of mmcv's ``LoadImageFromFile``; others than the defaults read whole images.
    """

    def __init__(self, reduced: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.reduced = reduced
        self.is_lazy = is_plain(self) and self.file_client_args is None and (reduced or load_library() is not None)

    def transform(self, results: dict) -> dict | None:
        """Read the file, and add the image to the results.

        Raises:
            OSError: If the file cannot be read.
            AssertionError: If it cannot be decoded.
        """
        if not self.is_lazy:
            return super().transform(results)
        path = results['img_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
            header = read_header(content)
            if header is None or header.orientation not in range(1, 9):
                image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            else:
                image = JPEGImage(content, header, path, self.reduced)
        except Exception:
            if self.ignore_empty:
                return None
            raise
        assert image is not None, f'failed to load image: {path}'
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, reduced={self.reduced})'


@TRANSFORMS.register_module()
class LoadPackedImage(LoadImageFromFile):
    """Take an image from a file that ``tools/prepare.py --task pretrain`` wrote.

    ``UnlabelledImages`` puts this step in the place of the first one if its ``data_root`` is such a file.

    Required key: ``packed_index``. Added keys: ``img``, a view (H, W, 3), BGR, uint8, of the mapped file;
    ``img_shape``, ``ori_shape``.

    Args:
        packed (PackedImages): The file.
    """

    def __init__(self, packed: PackedImages) -> None:
        super().__init__()
        self.packed = packed

    def transform(self, results: dict) -> dict:
        """Add the image to the results."""
        results['img'] = self.packed[results['packed_index']]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(packed={self.packed.path!r})'


@TRANSFORMS.register_module()
class FastRandomResizedCrop(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``, with the same crops and pixels in less time.

    Pillow's bicubic resizing is computed by numba where it is installed, and crops of a ``JPEGImage`` are decoded
    alone. Arguments are those of mmpretrain's class; only ``backend='pillow', interpolation='bicubic'`` gets faster.

    Required key: ``img``. Modified keys: ``img``, ``img_shape``.
    """

    def transform(self, results: dict) -> dict:
        """Crop and resize the image.

        Raises:
            OSError: If the image cannot be decoded.
        """
        image = results['img']
        top, left, rows, columns = self.rand_crop_params(image)
        height, width = self.scale
        is_bicubic = (self.backend, self.interpolation) == ('pillow', 'bicubic')
        if is_bicubic and isinstance(image, JPEGImage) and image.may_reduce:
            pixels, box = image.reduced((left, top, left + columns, top + rows), max(height, width))
            cropped = resize_bicubic(pixels, height, width, box)
        else:
            cropped = image[top : top + rows, left : left + columns]
            if is_bicubic:
                cropped = resize_bicubic(cropped, height, width)
            else:
                size = width, height
                cropped = mmcv.imresize(cropped, size, interpolation=self.interpolation, backend=self.backend)
        results['img'] = cropped
        results['img_shape'] = cropped.shape
        return results


@TRANSFORMS.register_module()
class FastRandomFlip(RandomFlip):
    """mmcv's ``RandomFlip``, which flips planes of ``FastRandomResizedCrop`` in place. Arguments are those of mmcv's.

    Required key: ``img``. Modified key: ``img``. Added keys: ``flip``, ``flip_direction``.
    """

    @cache_randomness
    def _choose_direction(self) -> str | None:
        if not isinstance(self.direction, str) or not isinstance(self.prob, float):
            return super()._choose_direction()
        # What np.random.choice draws, without its checks, which take a tenth of the time of a packed image
        drawn = np.random.random_sample()
        return self.direction if drawn < self.prob else None

    def _flip(self, results: dict) -> None:
        planes = np.moveaxis(results['img'], -1, 0) if results['img'].ndim == 3 else None
        has_more = any(results.get(key) is not None for key in ('gt_bboxes', 'gt_keypoints', 'gt_seg_map'))
        if results['flip_direction'] != 'horizontal' or has_more or planes is None or not planes.flags.c_contiguous:
            super()._flip(results)
            return
        for plane in planes:
            cv2.flip(plane, 1, plane)
