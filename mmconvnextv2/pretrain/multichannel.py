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

    Raises:
        ValueError: If ``channels`` is not positive.
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise UserError(f'channels={channels} of LoadMultiChannelImage: expected 1 or more')
        self.channels = channels

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
        if not np.isfinite(results['img']).all():
            raise FileError(f'{path} holds values that are not finite in float32')
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

    Args:
        mean (Sequence[float], optional): Mean to subtract, one value or one per channel in the order after ``to_rgb``.
            Defaults to None, no normalisation; ``std`` must then be None, too.
        std (Sequence[float], optional): Standard deviation to divide by, positive, as many values as ``mean``. Defaults
            to None.
        to_rgb (bool): Whether to reverse the order of three channels, which mmcv loads as BGR. Other numbers of
            channels keep their order. Defaults to False.
        non_blocking (bool): Whether the copy to the device may be asynchronous. Defaults to False.

    Raises:
        ValueError: If ``mean`` and ``std`` have different lengths, only one is given, or ``std`` is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = False,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking)
        if (mean is None) != (std is None) or (mean is not None and (len(mean) != len(std) or min(std) <= 0)):
            raise UserError(
                f'mean={mean} and std={std} of the data_preprocessor: expected the same number of '
                'values in both, and positive deviations'
            )
        self.to_rgb = to_rgb
        self.normalises = mean is not None
        if self.normalises:
            self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

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
        return {**data, 'inputs': (images - self.mean) / self.std if self.normalises else images}
