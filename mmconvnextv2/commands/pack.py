"""``tools/prepare.py --task pretrain``: from a folder of images to one file of decoded images (packed_images.py).

Images are appended to ``OUT.partial`` in the order in which ``UnlabelledImages`` lists them, and noted in
``OUT.journal`` once they are on the disk. A killed run continues from there, and ends with the same bytes.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.utils import ProgressBar
from torch.utils.data import DataLoader, Dataset

from ..datasets.packed_images import HEADER, RECORD, VERSION, PackedImages, is_packed, pack_header
from ..datasets.resize import resize_bicubic
from ..pretrain.dataset import UnlabelledImages
from ..utils.errors import ExistingFileError, UserError

BATCH = 64  # images between two entries in the journal
LINES = 20  # unreadable images to name


class DecodedImages(Dataset):
    """Images of a list of files as training reads them, reduced to a short side; a message for an unreadable one."""

    def __init__(self, paths: list[str], side: int, first: int) -> None:
        self.paths = paths
        self.side = side
        self.first = first
        self.load = LoadImageFromFile()

    def __len__(self) -> int:
        return len(self.paths) - self.first

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            image = self.load(dict(img_path=self.paths[self.first + index]))['img']
        except (OSError, AssertionError, SyntaxError, cv2.error) as error:
            return f'{type(error).__name__}: {error}'
        height, width = image.shape[:2]
        if not self.side or min(height, width) <= self.side:
            return image
        scale = self.side / min(height, width)
        return np.ascontiguousarray(resize_bicubic(image, round(height * scale), round(width * scale)))


def pack_images(source: str, out: str, side: int = 256, workers: int = 2) -> list[str]:
    """Write the images below a folder to a packed file, or check such a file if it is complete.

    Args:
        source (str): Folder of images.
        out (str): File to write.
        side (int): Short side in pixels to which larger images are reduced (bicubic, antialiased), 0 for none. Defaults
            to 256.
        workers (int): Processes that decode. Defaults to 2.

    Returns:
        list[str]: Lines to print.

    Raises:
        ValueError: If a number is negative, another process writes ``out``, ``out`` is damaged, or no image can be
            read.
    """
    if side < 0 or workers < 0:
        raise UserError(f'--side {side}, --workers {workers}: expected 0 or more')
    if os.path.lexists(out):
        return check_packed(out)
    if not os.path.isdir(source):
        raise UserError(f'{source} is not a folder of images')
    listed = UnlabelledImages(source, lazy_init=False)
    paths = [listed.get_data_info(index)['img_path'] for index in range(len(listed))]
    names = [os.path.relpath(path, source) for path in paths]
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with _locked(f'{out}.journal') as journal, open(f'{out}.partial', 'ab+') as data:
        records, damaged = _resume(journal, data, _signature(names, side))
        _append(journal, data, DecodedImages(paths, side, len(records) + len(damaged)), records, damaged, workers)
        if not records:
            raise UserError(f'none of the {len(names)} images in {source} can be read')
        good = [name for index, name in enumerate(names) if index not in damaged]
        _finish(data, records, good, [[names[index], reason] for index, reason in damaged.items()], side)
        os.replace(f'{out}.partial', out)
        os.remove(f'{out}.journal')
    return _summary(PackedImages(out), [(names[index], reason) for index, reason in damaged.items()])


def check_packed(out: str) -> list[str]:
    """Compare every image of a packed file with its checksum.

    Raises:
        ValueError: If ``out`` is not a packed file, or is damaged.
    """
    if not is_packed(out):
        raise ExistingFileError(f'{out} exists: choose another name, or remove it')
    packed = PackedImages(out)
    damaged = list(packed.damaged())
    if damaged:
        raise UserError(
            f'{len(damaged)} images of {out} are damaged, such as {damaged[0]}: remove the file, and repeat'
        )
    return [f'{out} is complete: {len(packed)} images, all as written']


def _signature(names: list[str], side: int) -> bytes:
    digest = hashlib.sha256('\0'.join(names).encode()).hexdigest()
    return json.dumps(dict(version=VERSION, side=side, images=len(names), names=digest)).encode() + b'\n'


@contextmanager
def _locked(path: str) -> Iterator[BinaryIO]:
    with open(path, 'ab+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, which outlive a kill
        except OSError:
            raise UserError(f'another process writes {path.removesuffix(".journal")}: wait for it, or end it') from None
        yield file


def _resume(journal: BinaryIO, data: BinaryIO, signature: bytes) -> tuple[list[tuple], dict[int, str]]:
    """Return the images and the unreadable ones that an earlier run has written, and cut both files after them."""
    journal.seek(0)
    lines = journal.read().split(b'\n')
    size = os.fstat(data.fileno()).st_size
    records, damaged, kept, end = [], {}, len(signature), HEADER
    if lines[0] + b'\n' == signature:
        for line in lines[1:-1]:  # the last one is empty, or cut short
            entry = json.loads(line)
            if isinstance(entry[1], str):
                damaged[entry[0]] = entry[1]
            elif end + entry[0] * entry[1] * 3 > size:
                break
            else:
                records.append((end, *entry))
                end += entry[0] * entry[1] * 3
            kept += len(line) + 1
    else:
        journal.truncate(0)
        journal.write(signature)
        journal.flush()
    journal.truncate(kept)
    data.truncate(end)
    if records or damaged:
        print(f'continues after {len(records) + len(damaged)} images')
    return records, damaged


def _append(
    journal: BinaryIO, data: BinaryIO, images: DecodedImages, records: list, damaged: dict, workers: int
) -> None:
    """Decode and append the images that are missing; the journal notes them when they are on the disk."""
    ahead = 16 if workers else None
    loader = DataLoader(
        images, None, num_workers=workers, collate_fn=_same, worker_init_fn=_single_thread, prefetch_factor=ahead
    )
    progress, lines = ProgressBar(len(images.paths)), []
    progress.completed = images.first
    end = records[-1][0] + records[-1][1] * records[-1][2] * 3 if records else HEADER
    for index, image in enumerate(loader, images.first):
        if isinstance(image, str):
            damaged[index] = image
            lines.append([index, image])
        else:
            height, width = image.shape[:2]
            lines.append([height, width, zlib.crc32(image)])
            records.append((end, *lines[-1]))
            data.write(image)
            end += image.nbytes
        if len(lines) == BATCH or index + 1 == len(images.paths):
            data.flush()
            os.fsync(data.fileno())
            journal.write(b''.join(json.dumps(line).encode() + b'\n' for line in lines))
            journal.flush()
            progress.update(len(lines))
            lines.clear()
    print()


def _same(image: np.ndarray | str) -> np.ndarray | str:
    return image


def _single_thread(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _finish(data: BinaryIO, records: list[tuple], names: list[str], damaged: list, side: int) -> None:
    """Append index and paths, and write the header, after which the file counts as complete."""
    index = np.zeros(len(records), RECORD)
    encoded = [name.encode() for name in names]
    for field, values in zip(('offset', 'height', 'width', 'crc'), zip(*records)):
        index[field] = values
    index['path_end'] = np.cumsum([len(name) for name in encoded])
    tail = index.tobytes() + b''.join(encoded)
    start = int(records[-1][0] + records[-1][1] * records[-1][2] * 3)
    data.write(tail)
    data.flush()
    os.fsync(data.fileno())
    header = dict(images=len(records), side=side, index=start, size=start + len(tail), index_crc=zlib.crc32(tail))
    if damaged:
        header['unreadable'] = len(damaged)
    with open(data.name, 'r+b') as file:
        file.write(pack_header(**header))
        file.flush()
        os.fsync(file.fileno())


def _summary(packed: PackedImages, damaged: list[tuple[str, str]]) -> list[str]:
    lines = [f'left out {name}: {reason}' for name, reason in damaged[:LINES]]
    if len(damaged) > LINES:
        lines.append(f'... and {len(damaged) - LINES} more')
    mib = os.path.getsize(packed.path) / 2**20
    return [
        *lines,
        f'{packed.path}: {len(packed)} images, {mib:.0f} MiB, {len(damaged)} unreadable; pretrain on it with',
        f'    --cfg-options train_dataloader.dataset.data_root={packed.path}',
    ]
