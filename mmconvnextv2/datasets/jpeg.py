"""JPEG files that are decoded only where they are read.

libjpeg-turbo 3 decodes a region of a file, to the pixels that decoding the whole file gives: entropy decoding up to the
last row of the region, everything else only inside it and a margin. Its TurboJPEG interface is used through ctypes,
from wherever a shared library of it is found; without one, and for files that it or this module does not decode like
OpenCV (rotated, CMYK, cut short, of unusual subsampling), OpenCV decodes the whole file.
"""

import ctypes
import os
import sys
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from ctypes.util import find_library
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import local
from typing import NamedTuple

import cv2
import numpy as np

from ..utils.errors import FileError

VARIABLE = 'MMCONVNEXTV2_TURBOJPEG'
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman coded
MCU = {0: (8, 8), 1: (16, 8), 2: (16, 16), 3: (8, 8), 4: (8, 16), 5: (32, 8)}  # width, height by TJSAMP
INITIALISE, STOP_ON_WARNING, SUBSAMPLING, BGR = 1, 0, 4, 1  # constants of turbojpeg.h
REDUCTIONS = (8, 4, 2)  # factors with a fast inverse transform


class Region(ctypes.Structure):
    """``tjregion`` of turbojpeg.h."""

    _fields_ = [('x', c_int), ('y', c_int), ('w', c_int), ('h', c_int)]


class Factor(ctypes.Structure):
    """``tjscalingfactor`` of turbojpeg.h."""

    _fields_ = [('num', c_int), ('denom', c_int)]


class Header(NamedTuple):
    """What the header of a JPEG file says; height and width are those before rotation."""

    height: int
    width: int
    components: int
    orientation: int


def read_header(content: bytes) -> Header | None:
    """Return the header of a JPEG file of 8 bits, None for anything else."""
    if content[:2] != b'\xff\xd8':
        return None
    place, orientation = 2, 1
    while place + 9 < len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], 'big')
        if marker in FRAMES:
            precision, components = content[place + 4], content[place + 9]
            height, width = (int.from_bytes(content[place + at : place + at + 2], 'big') for at in (5, 7))
            return Header(height, width, components, orientation) if precision == 8 and height and width else None
        if marker == 0xE1 and content[place + 4 : place + 10] == b'Exif\0\0':
            orientation = read_orientation(content[place + 10 : place + 2 + length])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or length < 2 or marker in (0xD9, 0xDA, 0xFF):
            return None
        place += 2 + length
    return None


def read_orientation(exif: bytes) -> int:
    """Return the orientation of an Exif block, 1 if it gives none and 0 if it is damaged."""
    order = {b'II*\0': 'little', b'MM\0*': 'big'}.get(exif[:4])
    if order is None:
        return 0

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    for index in range(number(start, 2)):
        entry = start + 2 + 12 * index
        if number(entry, 2) == 0x0112:
            return number(entry + 8, 2)
    return 1


def library_paths() -> list[str]:
    """Return where a shared TurboJPEG library may be: the environment variable, packages, conda, the system."""
    if os.environ.get(VARIABLE):
        return [os.environ[VARIABLE]]
    paths: list[str | None] = []
    try:
        files = metadata.files('turbojpeg') or []
        paths += [str(file.locate()) for file in files if 'libturbojpeg' in file.name]
    except metadata.PackageNotFoundError:
        pass
    paths += [str(path) for path in sorted(Path(sys.prefix, 'lib').glob('libturbojpeg.*'))]
    return [path for path in [*paths, find_library('turbojpeg')] if path]


@cache
def load_library() -> ctypes.CDLL | None:
    """Return libjpeg-turbo's TurboJPEG library, version 3 or newer, or None."""
    for path in library_paths():
        try:
            library = ctypes.CDLL(path)
            library.tj3SetCroppingRegion.argtypes = [c_void_p, Region]
        except (OSError, AttributeError):  # not there, or of version 2
            continue
        library.tj3Init.restype, library.tj3Init.argtypes = c_void_p, [c_int]
        library.tj3Get.argtypes = [c_void_p, c_int]
        library.tj3DecompressHeader.argtypes = [c_void_p, c_char_p, c_size_t]
        library.tj3SetScalingFactor.argtypes = [c_void_p, Factor]
        library.tj3Decompress8.argtypes = [c_void_p, c_char_p, c_size_t, c_void_p, c_int, c_int]
        return library
    return None


def describe() -> str:
    """Say in one line what decodes JPEG files."""
    library = load_library()
    if library:
        return f'regions by {os.path.basename(library._name)}'
    if os.environ.get(VARIABLE):
        return f'whole files by OpenCV: {VARIABLE}={os.environ[VARIABLE]} is not a TurboJPEG library of version 3'
    return 'whole files by OpenCV'


class RegionDecoder:
    """One decompressor of the TurboJPEG library; not for several threads at once."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.handle = library.tj3Init(INITIALISE)

    def decode(
        self, content: bytes, size: tuple[int, int], box: tuple[int, int, int, int], reduction: int = 1
    ) -> np.ndarray | None:
        """Decode a region.

        At the borders of a region, libjpeg-turbo upsamples chroma without the neighbours outside. The region is
        therefore decoded with a margin of one unit of chroma (MCU), which is cut off.

        Args:
            content (bytes): The file.
            size (tuple): Height and width of the image, after the reduction.
            box (tuple): Left, top, right, bottom in pixels, after the reduction.
            reduction (int): Factor by which the inverse transform reduces the image: 1, 2, 4 or 8. Defaults to 1.

        Returns:
            np.ndarray | None: BGR, uint8 (bottom - top, right - left, 3), None if the library warns or fails.
        """
        library, handle = self.library, self.handle
        if library.tj3DecompressHeader(handle, content, len(content)):
            return None
        unit = MCU.get(library.tj3Get(handle, SUBSAMPLING))
        if unit is None:
            return None
        across, down = (max(1, side // reduction) for side in unit)
        left, top = max(0, (box[0] // across - 1) * across), max(0, box[1] - down)
        right, bottom = min(size[1], box[2] + across), min(size[0], box[3] + down)
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        failed = (
            library.tj3SetScalingFactor(handle, Factor(1, reduction))
            or library.tj3SetCroppingRegion(handle, Region(left, top, right - left, bottom - top))
            or library.tj3Decompress8(handle, content, len(content), out.ctypes.data, 0, BGR)
        )
        library.tj3SetCroppingRegion(handle, Region())
        if failed:
            return None
        return out[box[1] - top : box[3] - top, box[0] - left : box[2] - left]


HANDLES = local()


def region_decoder() -> RegionDecoder | None:
    """Return this thread's decoder, None without a library."""
    library = load_library()
    if library is None:
        return None
    if not hasattr(HANDLES, 'decoder'):
        HANDLES.decoder = RegionDecoder(library)
    return HANDLES.decoder


class JPEGImage:
    """JPEG file in the place of an array (H, W, 3), BGR, uint8; slices of it decode what they show.

    Args:
        content (bytes): The file.
        header (Header): Its header.
        path (str): Its path, for messages.
        may_reduce (bool): Whether a crop may be decoded at a part of its size. Defaults to False.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, content: bytes, header: Header, path: str, may_reduce: bool = False) -> None:
        self.content = content
        self.path = path
        self.may_reduce = may_reduce
        self.stored = header.height, header.width
        height, width = self.stored if header.orientation < 5 else self.stored[::-1]
        self.shape = height, width, 3
        is_complete = content.endswith(b'\xff\xd9')
        self.has_regions = header.orientation == 1 and header.components in (1, 3) and is_complete
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if self._pixels is None:
            self._pixels = self._decode(cv2.IMREAD_COLOR, self.shape)
        return self._pixels if dtype is None else self._pixels.astype(dtype)

    def __getitem__(self, index: tuple) -> np.ndarray:
        rows, columns = index[:2] if isinstance(index, tuple) else (index, slice(None))
        if not (isinstance(rows, slice) and isinstance(columns, slice)):
            return np.asarray(self)[index]
        top, bottom, row_step = rows.indices(self.shape[0])
        left, right, column_step = columns.indices(self.shape[1])
        whole = (left, top, right, bottom) == (0, 0, self.shape[1], self.shape[0])
        if self._pixels is not None or whole or (row_step, column_step) != (1, 1) or bottom <= top or right <= left:
            return np.asarray(self)[index]
        region = self._decode_region((left, top, right, bottom))
        if region is None:
            return np.asarray(self)[index]
        return region[(slice(None), slice(None), *index[2:])] if isinstance(index, tuple) else region

    def reduced(self, box: tuple[int, int, int, int], least: int) -> tuple[np.ndarray, tuple[float, ...]]:
        """Decode a region at 1/2, 1/4 or 1/8 of its size if its sides are then still ``least`` pixels or longer.

        Args:
            box (tuple): Left, top, right, bottom in pixels.
            least (int): Least side in pixels after the reduction.

        Returns:
            tuple: Pixels, and the place of ``box`` in them, with fractions of pixels.
        """
        left, top, right, bottom = box
        shorter = min(right - left, bottom - top)
        factor = next((factor for factor in REDUCTIONS if shorter >= least * factor), 1)
        if factor == 1:
            return self[top:bottom, left:right], (0, 0, right - left, bottom - top)
        size = -(-self.shape[0] // factor), -(-self.shape[1] // factor)
        place = [left / factor, top / factor, min(right / factor, size[1]), min(bottom / factor, size[0])]
        outer = int(place[0]), int(place[1]), int(-(-place[2] // 1)), int(-(-place[3] // 1))
        pixels = self._decode_region(outer, size, factor)
        if pixels is None:
            flag = getattr(cv2, f'IMREAD_REDUCED_COLOR_{factor}')
            pixels = self._decode(flag, (*size, 3))[outer[1] : outer[3], outer[0] : outer[2]]
        x, y = outer[:2]
        return pixels, (place[0] - x, place[1] - y, place[2] - x, place[3] - y)

    def _decode_region(self, box: tuple, size: tuple | None = None, reduction: int = 1) -> np.ndarray | None:
        decoder = region_decoder() if self.has_regions else None
        return decoder.decode(self.content, size or self.stored, box, reduction) if decoder else None

    def _decode(self, flag: int, shape: tuple[int, ...]) -> np.ndarray:
        """Decode the whole file as mmcv does.

        Raises:
            OSError: If it cannot be decoded, or has another size than its header says.
        """
        pixels = cv2.imdecode(np.frombuffer(self.content, np.uint8), flag)
        if pixels is None or pixels.shape != shape:
            raise FileError(f'failed to load image: {self.path}')
        return pixels
