"""File of decoded images for pretraining, read by memory map.

Layout, little-endian: a header of 4096 bytes (magic number, version, and JSON padded with spaces), the pixels of all
images one after the other (BGR, uint8, row by row), the index (``RECORD`` per image) and the paths of the images
(UTF-8, without separators). The header is written last, so that an unfinished file is never taken for a complete one.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from ..utils.errors import FileError, MissingFileError, UserError

MAGIC = b'CNV2PACK'
VERSION = 1
HEADER = 4096
PREFIX = struct.Struct('<8sI')  # magic number and version
RECORD = np.dtype(
    [('offset', '<u8'), ('path_end', '<u8'), ('height', '<u4'), ('width', '<u4'), ('crc', '<u4'), ('reserved', '<u4')]
)
PREPARE = 'write it with tools/prepare.py IMAGES --task pretrain --out FILE'


def is_packed(path: str) -> bool:
    """Return whether a path is a file, and so has to be one of packed images; a folder is one of images."""
    return os.path.isfile(path)


class PackedImages(Sequence):
    """Images of a packed file, as read-only views (H, W, 3), BGR, uint8, of the mapped file.

    Only the pages that are read take memory, which processes of one machine share. Pickling keeps the path.

    Args:
        path (str): The file.

    Attributes:
        side (int): Short side to which larger images were reduced, 0 for none.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of this kind, of another version, or cut short.
    """

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        header = read_header(self.path)
        self.side: int = header['side']
        with open(self.path, 'rb') as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._index = np.frombuffer(self._map, RECORD, header['images'], header['index'])
        self._paths = header['index'] + self._index.nbytes
        if zlib.crc32(memoryview(self._map)[header['index'] : header['size']]) != header['index_crc']:
            raise FileError(f'the index of {self.path} is damaged: remove the file, and {PREPARE}')

    def __reduce__(self) -> tuple:
        return PackedImages, (self.path,)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        record = self._index[index]
        shape = int(record['height']), int(record['width']), 3
        return np.ndarray(shape, np.uint8, self._map, int(record['offset']))

    def image_path(self, index: int) -> str:
        """Return the path of an image, relative to the folder that was packed."""
        start = self._paths + (int(self._index[index - 1]['path_end']) if index else 0)
        return self._map[start : self._paths + int(self._index[index]['path_end'])].decode()

    def damaged(self) -> Iterator[str]:
        """Read all pixels, and yield the paths of images that do not have the checksum of when they were written."""
        for index, record in enumerate(self._index):
            if zlib.crc32(self[index]) != record['crc']:
                yield self.image_path(index)


def read_header(path: str) -> dict:
    """Return the JSON header of a packed file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of this kind, of another version, or cut short.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist: {PREPARE}')
    with open(path, 'rb') as file:
        start = file.read(HEADER)
    magic, version = PREFIX.unpack_from(start.ljust(PREFIX.size))
    if magic != MAGIC:
        raise UserError(f'{path} is not a file of packed images: give a folder of images, or {PREPARE}')
    if version != VERSION:
        raise UserError(
            f'{path} has version {version} of packed images, this mmconvnextv2 reads version {VERSION}: {PREPARE} again'
        )
    size = os.path.getsize(path)
    try:
        header = json.loads(start[PREFIX.size :])
    except ValueError:
        header = None
    if header is None or size != header['size']:
        expected = f'{header["size"]} bytes' if header else f'a header of {HEADER} bytes'
        raise UserError(f'{path} is cut short: {size} bytes, expected {expected}; copy it again, or {PREPARE}')
    return header


def pack_header(**values: object) -> bytes:
    """Return the header of a packed file, with ``values`` as JSON."""
    return (PREFIX.pack(MAGIC, VERSION) + json.dumps(values, sort_keys=True).encode()).ljust(HEADER)
