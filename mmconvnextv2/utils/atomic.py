"""Files that appear whole or not at all."""
import os
from contextlib import contextmanager
from typing import Iterator
from uuid import uuid4


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
