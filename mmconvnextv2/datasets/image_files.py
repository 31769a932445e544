"""Listing image files, and reading them as training does."""

import os
from collections.abc import Callable, Sequence

import cv2
import mmcv
import numpy as np
from mmengine.utils import scandir
from PIL import Image

from ..utils.errors import MissingFileError, UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.bmp', '.webp', '.tif', '.tiff')


def list_images(paths: Sequence[str], extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """List image files; the files of a folder are sorted by name.

    Args:
        paths (Sequence[str]): Files, which are returned unchanged, and folders, which are searched recursively.
        extensions (Sequence[str]): Extensions of the files to list from folders, in any case. Defaults to those of
            images.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If no image is found.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            names = scandir(path, suffix=tuple(extensions), recursive=True, case_sensitive=False)
            files += [os.path.join(path, name) for name in sorted(names)]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise MissingFileError(f'{path} does not exist')
    if not files:
        raise UserError(f'no image ({", ".join(extensions)}) in {list(paths)}')
    return files


def read_rgb(path: str) -> np.ndarray:
    """Read an image as training does: rotated by EXIF, 16 bits reduced to 8, grey repeated, alpha dropped.

    Returns:
        np.ndarray: RGB image, uint8 (H, W, 3).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read as an image.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist')
    try:
        image = mmcv.imread(path, channel_order='rgb')
    except cv2.error:  # empty file, or more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UserError(f'{path} cannot be read as an image: replace or remove it')
    return image


def read_image(load: Callable[[dict], dict | None] | None, path: str) -> dict:
    """Read an image file by the first step of a pipeline.

    Args:
        load (Callable, optional): The step, such as a ``LoadImageFromFile``.
        path (str): The file.

    Returns:
        dict: The pipeline's dict, with ``img``.

    Raises:
        ValueError: If the file is not there, has no bytes or is not an image.
    """
    if load is None:
        raise UserError(f'{path}: the first step of test_dataloader.dataset.pipeline does not read files: give arrays')
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist')
    if not os.path.getsize(path):
        raise UserError(f'{path} is empty')
    try:
        results = load(dict(img_path=path, img_id=0))
    except UserError:
        raise
    except Exception as error:  # of whatever decodes it
        raise UserError(f'{path} cannot be read as an image') from error
    if results is None or results.get('img') is None:
        raise UserError(f'{path} cannot be read as an image')
    return results


def class_colours(count: int) -> np.ndarray:
    """Return distinct RGB colours, uint8 (count, 3), with hues at the golden angle."""
    hsv = np.array([[round(label * 68.75) % 180, 200, 255] for label in range(count)], np.uint8)  # 137.5 degrees
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def write_label_map(labels: np.ndarray, path: str, palette: Sequence | None = None) -> None:
    """Write class indices (H, W) as a PNG in which viewers show colours and readers of indices find indices.

    Args:
        labels (np.ndarray): Integers from 0; above 255 the PNG has 16 bits and no colours.
        path (str): File to write; its folder is created.
        palette (Sequence, optional): RGB colours by label, 0 to 255. Defaults to None, distinct colours.
    """
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    if labels.max(initial=0) > 255:
        Image.fromarray(labels.astype(np.uint16)).save(path)
        return
    colours = class_colours(256)
    if palette is not None:
        colours[: len(palette)] = palette[:256]
    image = Image.frombytes('P', labels.shape[::-1], labels.astype(np.uint8).tobytes())
    image.putpalette(colours.flatten().tolist())
    image.save(path)
