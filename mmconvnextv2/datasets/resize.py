"""Pillow's bicubic resizing of uint8 images, in a third of its time where numba is installed.

Follows Pillow's arithmetic exactly: weights of 22 bits after the point, two passes, and rounding to uint8 after each of
them. Which pass comes first depends on the version of Pillow, so results are compared with the installed one before
numba first serves; if they differ, Pillow serves.
"""

from collections.abc import Callable
from functools import cache
from threading import local
from typing import NamedTuple

import cv2
import numpy as np
import PIL
from PIL import Image

from ..utils.compat import installed_version

SCRATCH = local()


class Kernels(NamedTuple):
    """Compiled passes, and whether an image (rows, columns, height, width) is resized along columns first."""

    weights: Callable
    combine: Callable
    vertical_first: Callable[[int, int, int, int], bool]


def never(rows: int, columns: int, height: int, width: int) -> bool:
    """Pillow up to 12 resizes along rows first."""
    return False


def if_shorter(rows: int, columns: int, height: int, width: int) -> bool:
    """Pillow 13 resizes along columns first where the height shrinks by more than twice what the width shrinks by."""
    return rows > height and rows - height > 2 * (columns - width)


@cache
def find_kernels() -> Kernels | None:
    """Return the kernels if numba is installed and they equal the installed Pillow, else None."""
    try:
        from . import resize_numba
    except Exception:  # not installed, or not for this numpy or processor
        return None
    for order in (never, if_shorter):
        kernels = Kernels(resize_numba.weights, resize_numba.combine, order)
        if _equals_pillow(kernels):
            return kernels
    return None


def _equals_pillow(kernels: Kernels) -> bool:
    """Compare the kernels with Pillow on noise, for sizes whose result depends on the order of the passes."""
    noise = np.random.RandomState(0).randint(0, 256, (90, 120, 3), np.uint8)
    sizes = [(90, 30, 32, 32), (40, 37, 32, 32), (50, 37, 32, 32), (20, 90, 32, 64), (60, 120, 32, 32)]
    sizes += [
        (25, 28, 32, 32),
        (43, 37, 32, 32),
        (42, 37, 32, 32),
        (80, 56, 32, 32),
    ]  # both sides of the rule of Pillow 13
    return all(
        np.array_equal(
            _with_numba(kernels, noise[:rows, :columns], height, width, None),
            _with_pillow(noise[:rows, :columns], height, width, None),
        )
        for rows, columns, height, width in sizes
    )


def describe() -> str:
    """Say in one line what resizes."""
    if find_kernels():
        return f'numba {installed_version("numba")}, equal to Pillow {PIL.__version__}'
    if installed_version('numba'):
        return f'Pillow {PIL.__version__}: numba {installed_version("numba")} cannot be used, or differs'
    return f'Pillow {PIL.__version__}'


def resize_bicubic(image: np.ndarray, height: int, width: int, box: tuple | None = None) -> np.ndarray:
    """Resize an image as Pillow does, bit for bit.

    Args:
        image (np.ndarray): uint8 (H, W, 3); a view into a larger image is read without a copy.
        height (int): Height of the result.
        width (int): Width of the result.
        box (tuple, optional): Part of the image to resize, (left, top, right, bottom) in pixels, possibly fractions.
            Defaults to None, the whole image.

    Returns:
        np.ndarray: uint8 (height, width, 3). Its memory holds one plane per channel if numba served, so that a tensor
        (3, height, width) of it needs no copy.
    """
    compiled = find_kernels()
    is_strip = image.shape[0] > 100 * image.shape[1]  # older Pillows resize these along columns first
    if compiled is None or is_strip or image.dtype != np.uint8 or image.shape[2:] != (3,):
        return _with_pillow(image, height, width, box)
    return _with_numba(compiled, image, height, width, box)


def _with_pillow(image: np.ndarray, height: int, width: int, box: tuple | None) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box))


def _with_numba(compiled: Kernels, image: np.ndarray, height: int, width: int, box: tuple | None) -> np.ndarray:
    rows, columns = image.shape[:2]
    left, top, right, bottom = map(float, np.float32(box or (0, 0, columns, rows)))  # Pillow's precision
    out = np.empty((3, height, width), np.uint8)
    across, down = compiled.weights(columns, left, right, width), compiled.weights(rows, top, bottom, height)
    is_whole = (left, top, right, bottom) == (0, 0, columns, rows)
    if is_whole and (columns, rows) == (width, height):
        cv2.split(image, list(out))
    elif compiled.vertical_first(rows, columns, height, width):
        _rows_then_columns(compiled, image, across, down, out)
    else:
        _columns_then_rows(compiled, image, across, down, out)
    return out.transpose(1, 2, 0)


def _columns_then_rows(compiled: Kernels, image: np.ndarray, across: tuple, down: tuple, out: np.ndarray) -> None:
    """Resize along rows first. Both passes add up rows of memory, so the image is transposed before and after."""
    rows, columns = image.shape[:2]
    width = out.shape[2]
    planes = cv2.split(image, list(_scratch('planes', 3, rows, columns)))
    turned = _scratch('turned', columns, 3, rows)
    for channel, plane in enumerate(planes):
        cv2.transpose(plane, turned[:, channel])
    narrow = _scratch('narrow', width, 3, rows)
    compiled.combine(turned.reshape(columns, -1), *across, narrow.reshape(width, -1))
    plane = _scratch('plane', rows, width)
    for channel in range(3):
        cv2.transpose(narrow[:, channel], plane)
        compiled.combine(plane, *down, out[channel])


def _rows_then_columns(compiled: Kernels, image: np.ndarray, across: tuple, down: tuple, out: np.ndarray) -> None:
    """Resize along columns first."""
    rows, columns = image.shape[:2]
    height, width = out.shape[1:]
    planes = cv2.split(image, list(_scratch('planes', 3, rows, columns)))
    low, turned = _scratch('low', height, columns), _scratch('turned', columns, 3, height)
    for channel, plane in enumerate(planes):
        compiled.combine(plane, *down, low)
        cv2.transpose(low, turned[:, channel])
    narrow = _scratch('narrow', width, 3, height)
    compiled.combine(turned.reshape(columns, -1), *across, narrow.reshape(width, -1))
    for channel in range(3):
        cv2.transpose(narrow[:, channel], out[channel])


def _scratch(name: str, *shape: int) -> np.ndarray:
    """Return memory of this thread to write to; fresh memory would cost more than the resizing."""
    count = int(np.prod(shape))
    held = getattr(SCRATCH, name, None)
    if held is None or held.size < count:
        held = np.empty(count * 3 // 2, np.uint8)
        setattr(SCRATCH, name, held)
    return held[:count].reshape(shape)
