"""Images as programs hold them, in the form that test pipelines read."""

from typing import Any

import mmcv
import numpy as np

from ...utils.errors import UserError

ORDERS = ('rgb', 'bgr')


def to_pipeline_image(image: Any, channels: int, order: str = 'rgb') -> np.ndarray:
    """Return an array or a Pillow image as a test pipeline reads files.

    A grey image is repeated for a model of three channels, an alpha channel is dropped, and 16 bits are brought to 8 by
    their upper byte, as OpenCV reads files. Models of other channel counts take their own arrays unchanged.

    Args:
        image: uint8 or uint16 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a Pillow image; (H, W, ``channels``) of any
            number dtype for a model of another channel count.
        channels (int): Channels that the model reads.
        order (str): Order of the colour channels, ``'rgb'`` or ``'bgr'``. Defaults to ``'rgb'``.

    Returns:
        np.ndarray: uint8 (H, W, 3), blue first; uint8 (H, W) for a model of one channel.

    Raises:
        ValueError: If it is not an image, or not one that the model can read.
    """
    if order not in ORDERS:
        raise UserError(f'channel_order={order!r} is unknown: choose from {list(ORDERS)}')
    if hasattr(image, 'convert'):  # Pillow's, which are RGB
        image, order = np.asarray(image.convert('L' if channels == 1 else 'RGB')), 'rgb'
    if not isinstance(image, np.ndarray):
        raise UserError(
            f'an image of type {type(image).__name__} cannot be read: give a path, a Pillow image or a numpy array'
        )
    if image.ndim not in (2, 3) or not all(image.shape):
        raise UserError(f'an array of shape {image.shape} is not an image: expected (H, W) or (H, W, channels)')
    depth = 1 if image.ndim == 2 else image.shape[2]
    if channels not in (1, 3):
        if depth != channels or image.dtype.kind not in 'uif':
            raise UserError(
                f'the model reads {channels} channels: expected numbers (H, W, {channels}), got {_say(image)}'
            )
        return image
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f'expected uint8 or uint16, got {_say(image)}: scale values to 0 to 255 and convert them')
    if depth not in (1, 3, 4):
        raise UserError(f'expected 1, 3 or 4 channels, last in the array, got {_say(image)}')
    if depth == 1:
        grey = image.reshape(image.shape[:2])
        return grey if channels == 1 else np.repeat(grey[..., None], 3, 2)
    colour = image[..., :3] if order == 'bgr' else image[..., 2::-1]
    if channels == 1:
        return mmcv.bgr2gray(np.ascontiguousarray(colour))
    return np.ascontiguousarray(colour)


def _say(image: np.ndarray) -> str:
    return f'{image.dtype} {image.shape}'


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Convert an image of any depth, (H, W) or (H, W, C), to uint8 (H, W, 3) to draw on.

    One or two channels show the first one in grey; more channels show the first three.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255:
            image = (image - low) * (255 / max(high - low, 1e-12))
    return np.ascontiguousarray(image.astype(np.uint8))
