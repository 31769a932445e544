"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from .errors import UserError


@contextmanager
def replacing(target: str, mode: int = 0o666) -> Iterator[str]:
    """Yield a new empty file beside ``target``, which takes its place when the block ends well.

    The file is made exclusively, under a name that nobody can have prepared; a link at ``target`` is replaced, not
    followed.

    Args:
        target (str): The path to write.
        mode (int): Permissions before the umask. Defaults to 0o666.

    Raises:
        OSError: If the folder is missing or cannot be written. ``target`` is then as it was.
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
    """Yield a path in an empty folder; what is written there takes ``target``'s place, and that of files beside it,
    when the block ends well."""
    home, name = os.path.split(os.path.abspath(target))
    with tempfile.TemporaryDirectory(dir=home, prefix='.partial-') as folder:
        yield os.path.join(folder, name)
        for written in os.listdir(folder):
            os.replace(os.path.join(folder, written), os.path.join(home, written))


@contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """Yield an empty folder, which takes the name ``folder`` when the block ends well.

    Raises:
        ValueError: If there is something under that name, or no folder to make it in.
    """
    home, name = os.path.split(os.path.abspath(folder))
    if os.path.lexists(folder):
        raise UserError(f'{folder} exists: choose another name, or remove it')
    if not os.path.isdir(home):
        raise UserError(f'the folder of {folder} does not exist: make it, or choose another')
    with tempfile.TemporaryDirectory(dir=home, prefix='.partial-') as work:
        partial = os.path.join(work, name)
        os.mkdir(partial)
        yield partial
        os.rename(partial, folder)
