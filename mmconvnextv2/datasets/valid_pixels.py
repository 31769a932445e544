"""Pixels without data, from the image file to the model, where NaN marks them.

:class:`LoadValidPixels` finds them, :class:`WithValidPixels` moves their map through resizing, flips, crops and
padding, and :class:`MarkInvalidPixels`, the last step before packing, writes NaN over them. NaN is part of the image
tensor, so it survives collation, batch padding, sliding windows and test-time augmentation without a second argument
anywhere.
"""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from ..utils.errors import MissingFileError, UserError

FULL = 150  # of a pixel whose sources are all valid; below 255, so that what bicubic interpolation overshoots differs
BANDS = ('all', 'any')


@TRANSFORMS.register_module()
class LoadValidPixels:
    """Find an image's valid pixels, by all the rules that are given; pixels with NaN are always invalid.

    Required keys: ``img`` (H, W, channels) or (H, W), and ``img_path`` for alpha and mask files. Added key:
    ``valid_pixels``, bool array (H, W), True = valid. It belongs right after the step that reads the image.

    Args:
        no_data (float | Sequence[float], optional): Value of pixels without data, or one per channel in the order of
            ``img``; mmcv loads colours as BGR. Defaults to None.
        bands (str): Whether a pixel is invalid if ``'all'`` of its channels have the value, or if ``'any'`` has.
            Defaults to ``'all'``: one black channel is a colour.
        alpha (bool): Whether to read the file's alpha channel, whose zeros are invalid. Defaults to False.
        mask_suffix (str, optional): What replaces the extension of ``img_path`` in the name of an 8-bit image of the
            same size that is zero at invalid pixels, such as ``'_mask.png'``. Defaults to None.
        mask_folder (str, optional): Folder of these images if they are not beside their image. Defaults to None.

    Raises:
        ValueError: If ``bands`` is unknown.
    """

    def __init__(
        self,
        no_data: float | Sequence[float] | None = None,
        bands: str = 'all',
        alpha: bool = False,
        mask_suffix: str | None = None,
        mask_folder: str | None = None,
    ) -> None:
        if bands not in BANDS:
            raise UserError(f'bands={bands!r} of LoadValidPixels: choose from {list(BANDS)}')
        self.no_data = None if no_data is None else np.atleast_1d(np.asarray(no_data, np.float64))
        self.bands, self.alpha, self.mask_suffix, self.mask_folder = bands, alpha, mask_suffix, mask_folder

    def __call__(self, results: dict) -> dict:
        """Add ``valid_pixels``.

        Raises:
            FileNotFoundError: If a mask file is missing.
            ValueError: If ``no_data`` has another number of values than the image has channels, a file has no alpha
                channel, or an alpha channel or mask has another size than the image.
        """
        image = results['img']
        image = image[..., None] if image.ndim == 2 else image
        valid = np.ones(image.shape[:2], bool)
        if image.dtype.kind == 'f':
            valid &= ~np.isnan(image).any(2)
        if self.no_data is not None:
            if len(self.no_data) not in (1, image.shape[2]):
                raise UserError(
                    f'no_data of LoadValidPixels has {len(self.no_data)} values, but {results.get("img_path")} has '
                    f'{image.shape[2]} channels: give one value, or one per channel'
                )
            # In float32 too, the value must be the image's own: 3.4e38 is rounded as the file's values are
            missing = image == self.no_data.astype(image.dtype if image.dtype.kind == 'f' else np.float64)
            valid &= ~(missing.all(2) if self.bands == 'all' else missing.any(2))
        if self.alpha:
            valid &= self._check(_read_alpha(results['img_path']), valid, results['img_path'])
        if self.mask_suffix is not None:
            path = self._mask_path(results['img_path'])
            valid &= self._check(_read_mask(path), valid, path)
        return {**results, 'valid_pixels': valid}

    def _mask_path(self, path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(self.mask_folder or folder, os.path.splitext(name)[0] + str(self.mask_suffix))

    @staticmethod
    def _check(found: np.ndarray, valid: np.ndarray, path: str) -> np.ndarray:
        if found.shape != valid.shape:
            raise UserError(
                f'the valid pixels of {path} have shape {found.shape}, but the image has {valid.shape}: expected the '
                'same size. Put LoadValidPixels right after the step that reads the image'
            )
        return found

    def __repr__(self) -> str:
        no_data = None if self.no_data is None else self.no_data.tolist()
        return (
            f'{type(self).__name__}(no_data={no_data}, bands={self.bands!r}, alpha={self.alpha}, '
            f'mask_suffix={self.mask_suffix!r}, mask_folder={self.mask_folder!r})'
        )


def _read_alpha(path: str) -> np.ndarray:
    pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] not in (2, 4):
        raise UserError(f'{path} has no alpha channel: set alpha=False of LoadValidPixels, or store it as RGBA')
    return pixels[..., -1] > 0


def _read_mask(path: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist: mask_suffix of LoadValidPixels expects a mask for every image')
    pixels = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise UserError(f'{path} cannot be read as an image: replace it')
    return pixels > 0


@TRANSFORMS.register_module()
class WithValidPixels:
    """Run transforms that move pixels on the image and its valid pixels together.

    The map is one more channel of the image meanwhile, so that whatever a transform draws at random applies to both. A
    pixel stays valid if all pixels that it is interpolated from are valid; padding is invalid. Changes of colour belong
    outside. Without ``valid_pixels``, all pixels count as valid, which marks padding alone.

    Required key: ``img``. Modified keys: those of the transforms, and ``valid_pixels``.

    Args:
        transforms (list[dict]): Configs of ``Resize``, ``RandomFlip``, ``RandomCrop``, ``Pad`` and the like.

    Examples:
        >>> dict(type='WithValidPixels', transforms=[
        ...     dict(type='RandomResize', scale=(512, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
        ...     dict(type='RandomCrop', crop_size=(512, 512)), dict(type='RandomFlip', prob=0.5)])
    """

    def __init__(self, transforms: Sequence[dict]) -> None:
        self.transforms = [TRANSFORMS.build(one) if isinstance(one, dict) else one for one in transforms]
        for one in self.transforms:
            _pad_one_more(one)

    def __call__(self, results: dict) -> dict | None:
        """Run the transforms; None if one of them returns None.

        Raises:
            ValueError: If a transform changes the number of channels, or the map does not fit the image.
        """
        image = results['img']
        grey = image.ndim == 2
        image = image[..., None] if grey else image
        valid = results.get('valid_pixels')
        valid = np.ones(image.shape[:2], bool) if valid is None else valid
        if valid.shape != image.shape[:2]:
            raise UserError(f'valid_pixels has shape {valid.shape}, but the image has {image.shape[:2]} pixels')
        image = np.where(valid[..., None], image, np.zeros((), image.dtype))  # interpolation would spread a NaN
        stacked = np.concatenate([image, valid[..., None].astype(image.dtype) * image.dtype.type(FULL)], 2)
        moved: dict | None = {**results, 'img': np.ascontiguousarray(stacked)}
        for one in self.transforms:
            moved = one(moved)
            if moved is None:
                return None
        assert moved is not None
        found = moved['img']
        if found.ndim != 3 or found.shape[2] != stacked.shape[2]:
            raise UserError(
                f'a transform in WithValidPixels gave an image of shape {found.shape}: expected {stacked.shape[2]} '
                'channels; move changes of colour out of it'
            )
        pixels = np.ascontiguousarray(found[..., :-1])
        valid = np.abs(found[..., -1].astype(np.float32) - FULL) < 0.01  # interpolation in float32 rounds
        return {**moved, 'img': pixels[..., 0] if grey else pixels, 'valid_pixels': valid}

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms})'


def _pad_one_more(transform: Any) -> None:
    """Let a transform pad the map with zero where it pads each colour with a value of its own."""
    value = getattr(transform, 'pad_val', None)
    if isinstance(value, dict) and isinstance(value.get('img'), (list, tuple)):
        transform.pad_val = {**value, 'img': (*value['img'], 0)}
    for inner in getattr(transform, 'transforms', None) or ():
        if not isinstance(inner, (list, tuple)):
            _pad_one_more(inner)


@TRANSFORMS.register_module()
class MarkInvalidPixels:
    """Write NaN over invalid pixels, for a backbone with ``valid_sites=True``; the last step before packing.

    Required key: ``img``. Optional key: ``valid_pixels``; without it nothing is marked. Modified key: ``img``, which
    becomes float32 in any case, so that all images of a batch share a dtype.
    """

    def __call__(self, results: dict) -> dict:
        """Mark the pixels.

        Raises:
            ValueError: If the map does not fit the image.
        """
        image, valid = results['img'].astype(np.float32), results.get('valid_pixels')
        if valid is not None:
            if valid.shape != image.shape[:2]:
                raise UserError(
                    f'valid_pixels has shape {valid.shape}, but the image has {image.shape[:2]} pixels: put the steps '
                    "that resize, crop or pad it into dict(type='WithValidPixels', transforms=[...])"
                )
            image[~valid] = np.nan
        return {**results, 'img': image}

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
