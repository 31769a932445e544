"""Atomic writes: files and folders that appear complete or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from .errors import UserError


@contextmanager
def replacing(target: str, mode: int = 0o666) -> Iterator[str]:
    """Yield the path of a new empty file next to ``target``, which replaces ``target`` when the block succeeds.

    The file is created exclusively, under an unpredictable name. A link at ``target`` is replaced, not followed.

    Args:
        target (str): Path to write.
        mode (int): Permissions before the umask. Defaults to 0o666.

    Raises:
        OSError: If the folder is missing or cannot be written. ``target`` is then unchanged.
    """
    partial = f'{target}.{uuid4().hex}.partial'
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield partial
        os.replace(partial, target)
    finally:
        if os.path.lexists(partial):
            os.remove(partial)


@contextmanager
def replacing_files(target: str) -> Iterator[str]:
    """Yield a path with ``target``'s name in a temporary folder.

    When the block succeeds, the files written in that folder move to ``target``'s folder and replace files there.
    """
    home, name = os.path.split(os.path.abspath(target))
    with tempfile.TemporaryDirectory(dir=home, prefix='.partial-') as folder:
        yield os.path.join(folder, name)
        for written in os.listdir(folder):
            os.replace(os.path.join(folder, written), os.path.join(home, written))


@contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """Yield an empty folder, which is renamed to ``folder`` when the block succeeds.

    Raises:
        ValueError: If ``folder`` exists, or its parent does not.
    """
    home, name = os.path.split(os.path.abspath(folder))
    if os.path.lexists(folder):
        raise UserError(f'{folder} exists: choose another name, or remove it')
    if not os.path.isdir(home):
        raise UserError(f'the folder of {folder} does not exist: create it, or choose another')
    with tempfile.TemporaryDirectory(dir=home, prefix='.partial-') as work:
        partial = os.path.join(work, name)
        os.mkdir(partial)
        yield partial
        os.rename(partial, folder)
