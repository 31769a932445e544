"""Loading and normalisation of images with any number of channels and any bit depth.

mmcv's loaders support up to four 8-bit channels, and the preprocessors of mmengine and mmpretrain up to three channels.
They remain usable for such images; the classes here replace them for others.
"""

import io
from collections.abc import Sequence

import cv2
import mmengine.fileio as fileio
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.model import BaseDataPreprocessor
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from torch import Tensor

from ..datasets.rasters import decode_many_bands
from ..utils.errors import FileError, UserError
from ..utils.moved import register_renamed

TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # magic numbers, the last two of BigTIFF


@TRANSFORMS.register_module()
class LoadMultiChannelImage(BaseTransform):
    """Read an image of a given number of channels, as float32.

    Images are read as stored: grey, colour or colour with alpha, 8 or 16 bits, without applying orientation tags. Files
    named ``*.npy`` are read as arrays (height, width) or (height, width, channels), TIFF files of more than four bands
    by rasterio, an optional package. Values of 16-bit images and ``uint16`` arrays are divided by 257, so 8 and 16 bits
    share the scale 0 to 255; other arrays keep their values.
    Three channels are returned in reversed order, as by mmcv's loaders and as ``to_rgb=True`` expects. Other numbers of
    channels, RGBA included, keep the order of the file.

    Required key: ``img_path``. Added keys: ``img`` (H, W, channels), ``img_shape``, ``ori_shape``. Resize ``img`` with
    ``backend='cv2'``, since Pillow only resizes 8-bit images. An example with five channels::

        _base_ = './fcmae_convnextv2-a_1xb64-800e_folder.py'
        model = dict(
            backbone=dict(in_channels=5),
            data_preprocessor=dict(mean=[110.] * 5, std=[60.] * 5, to_rgb=False))
        train_pipeline = [
            dict(type='LoadMultiChannelImage', channels=5),
            dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), interpolation='bicubic'),
            *_base_.train_pipeline[2:]
        ]
        train_dataloader = dict(dataset=dict(pipeline=train_pipeline, extensions=('.npy', )))

    Args:
        channels (int): Number of channels of every image.
        allow_nan (bool): Whether NaN may mark pixels without data, for a backbone with ``valid_sites=True``. Defaults
            to False.

    Raises:
        ValueError: If ``channels`` is not positive.
    """

    def __init__(self, channels: int, allow_nan: bool = False) -> None:
        if channels < 1:
            raise UserError(f'channels={channels} of LoadMultiChannelImage: expected 1 or more')
        self.channels = channels
        self.allow_nan = allow_nan

    def transform(self, results: dict) -> dict:
        """Read the image and add it to the results.

        Raises:
            OSError: If the file cannot be read, or holds values that are not finite.
            ValueError: If the image has another number of channels.
        """
        path = str(results['img_path'])
        content = fileio.get(path)
        pixels = read_array(content, path) if path.lower().endswith('.npy') else decode_image(content, path)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] != self.channels:
            raise UserError(
                f'{path} has shape {pixels.shape} (height, width, channels), but LoadMultiChannelImage has channels='
                f'{self.channels}: set channels, model.backbone.in_channels and the lengths of '
                'model.data_preprocessor.mean and std to the number of channels of the images, or remove this file'
            )
        scale = 257 if pixels.dtype == np.uint16 else 1
        results['img'] = np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(scale)
        bad = np.isinf if self.allow_nan else lambda image: ~np.isfinite(image)
        if bad(results['img']).any():
            raise FileError(
                f'{path} holds values that are not finite in float32; if NaN marks pixels without data, set '
                'allow_nan=True of LoadMultiChannelImage and model.backbone.valid_sites=True'
            )
        results['img_shape'] = results['ori_shape'] = pixels.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channels={self.channels})'


register_renamed(TRANSFORMS, 'LoadPicture', LoadMultiChannelImage)


def decode_image(content: bytes, path: str) -> np.ndarray:
    """Decode an image file's content to (H, W), (H, W, 3) in BGR order, (H, W, 4) in RGBA order, or (H, W, bands).

    Raises:
        OSError: If OpenCV cannot decode it.
    """
    bands = decode_many_bands(content) if content[:4] in TIFF else None
    if bands is not None:
        return bands
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FileError(f'{path} cannot be decoded: {error}') from error
    if pixels is None:
        raise FileError(f'{path} cannot be decoded; TIFF files of more than four bands need rasterio (make geo)')
    if content[:4] in TIFF and pixels.shape[2:] == (4,) and pixels.dtype == np.uint8:
        return np.asarray(Image.open(io.BytesIO(content)))  # OpenCV premultiplies the colours by alpha
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA) if pixels.ndim == 3 and pixels.shape[2] == 4 else pixels


def read_array(content: bytes, path: str) -> np.ndarray:
    """Decode an ``.npy`` file of real numbers; if there are three channels (last), their order is reversed.

    Raises:
        OSError: If the file is damaged, or holds values other than real numbers.
    """
    try:
        pixels = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FileError(f'{path} is not an array of numbers: {error}') from error
    if pixels.dtype.kind not in 'biuf':
        raise FileError(f'{path} is an array of {pixels.dtype}: expected real numbers')
    return pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels


@MODELS.register_module()
class FCMAEDataPreprocessor(BaseDataPreprocessor):
    """Data preprocessor that normalises images (B, C, H, W) with any number of channels.

    Images of several kinds, such as processing levels of Sentinel-2, have a mean and deviation each::

        data_preprocessor = dict(
            statistics=dict(l1c=dict(mean=[...], std=[...]), l2a=dict(mean=[...], std=[...])),
            statistics_key='processing_level')

    Args:
        mean (Sequence[float], optional): Mean to subtract, one value, one per channel in the order after ``to_rgb``, or
            one per group of ``band_groups``. Defaults to None, no normalisation; ``std`` must then be None, too.
        std (Sequence[float], optional): Standard deviation to divide by, positive, as many values as ``mean``. Defaults
            to None.
        to_rgb (bool): Whether to reverse the order of three channels, which mmcv loads as BGR. Other numbers of
            channels keep their order. Defaults to False.
        non_blocking (bool): Whether the copy to the device may be asynchronous. Defaults to False.
        band_groups (Sequence[int], optional): Number of consecutive channels of each group that shares a mean and a
            deviation, such as (3, 6, 3). Defaults to None, one value per channel.
        statistics (dict[str, dict], optional): ``mean`` and ``std`` for each kind of images, instead of one for all.
            Defaults to None.
        statistics_key (str, optional): Key of the kind in the data samples' metainfo; it must be in ``meta_keys`` of
            ``PackInputs``. Defaults to None.
        no_data (float, optional): Value of missing pixels, which become NaN; ``MPMAE`` leaves NaN out of the loss and
            shows 0, the mean, to the encoder. Defaults to None.

    Raises:
        ValueError: If ``mean`` and ``std`` have different lengths, only one is given, or ``std`` is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = False,
        non_blocking: bool = False,
        band_groups: Sequence[int] | None = None,
        statistics: dict[str, dict] | None = None,
        statistics_key: str | None = None,
        no_data: float | None = None,
    ) -> None:
        super().__init__(non_blocking)
        if (statistics is None) != (statistics_key is None) or (statistics is not None and mean is not None):
            raise UserError(
                'statistics of the data_preprocessor: expected statistics and statistics_key together, without mean '
                f'and std; got statistics_key={statistics_key!r}, mean={mean}'
            )
        self.to_rgb, self.no_data = to_rgb, no_data
        self.kinds, self.statistics_key = list(statistics or {}), statistics_key
        self.normalises = mean is not None or statistics is not None
        if self.normalises:
            given = list(statistics.values()) if statistics is not None else [dict(mean=mean, std=std)]
            read = [_read_statistics(one.get('mean'), one.get('std'), band_groups) for one in given]
            if len({len(means) for means, _ in read}) != 1:
                raise UserError(f'statistics of the data_preprocessor: {self.kinds} have different numbers of values')
            for name, values in zip(('mean', 'std'), zip(*read)):
                by_kind = torch.tensor(values, dtype=torch.float32)[..., None, None]  # (kinds, C, 1, 1)
                self.register_buffer(f'{name}_by_kind', by_kind, persistent=False)
                # What is drawn has one mean and deviation
                self.register_buffer(name, by_kind.mean(0) if statistics is not None else by_kind[0], persistent=False)
        elif std is not None:
            _read_statistics(mean, std, band_groups)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return the batch on the model's device, with normalised ``inputs``.

        Raises:
            ValueError: If the number of channels of the images does not fit ``mean``.
        """
        data = self.cast_data(data)
        images = data['inputs']
        if self.normalises and self.mean.numel() not in (1, images.shape[1]):
            raise UserError(
                f'the data_preprocessor has {self.mean.numel()} values in mean and std, but the images '
                f'have {images.shape[1]} channels: give as many, or load images with as many '
                "(dict(type='LoadMultiChannelImage', channels=...))"
            )
        images = images.flip(1) if self.to_rgb and images.shape[1] == 3 else images
        images = images.float()
        if self.no_data is not None:
            images = torch.where(images == self.no_data, torch.nan, images)
        if not self.normalises:
            return {**data, 'inputs': images}
        mean, std = (self.mean, self.std) if not self.kinds else self._of_kinds(data)
        return {**data, 'inputs': (images - mean) / std}

    def _of_kinds(self, data: dict) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each image's kind, (B, C, 1, 1)."""
        found = [sample.metainfo.get(self.statistics_key) for sample in data['data_samples']]
        unknown = [kind for kind in found if kind not in self.kinds]
        if unknown:
            raise UserError(
                f'a data sample has {self.statistics_key}={unknown[0]!r}, but statistics of the data_preprocessor are '
                f'for {self.kinds}: add it there; None means that meta_keys of the packing transform lack '
                f'{self.statistics_key!r}'
            )
        index = torch.tensor([self.kinds.index(kind) for kind in found]).to(self.mean.device, non_blocking=True)
        return self.mean_by_kind[index], self.std_by_kind[index]


def _read_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, groups: Sequence[int] | None
) -> tuple[list[float], list[float]]:
    """Return mean and deviation per channel.

    Raises:
        ValueError: If their lengths differ or do not fit the groups, or a deviation is not positive.
    """
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        raise UserError(
            f'mean={mean} and std={std} of the data_preprocessor: expected the same number of '
            'values in both, and positive deviations'
        )
    if groups is None:
        return list(mean), list(std)
    if len(groups) != len(mean):
        raise UserError(
            f'mean and std of the data_preprocessor have {len(mean)} values, band_groups={list(groups)} '
            f'{len(groups)}: expected one value per group'
        )
    means, deviations = (
        [value for value, count in zip(values, groups) for _ in range(count)] for values in (mean, std)
    )
    return means, deviations
