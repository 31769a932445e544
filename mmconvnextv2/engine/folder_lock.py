"""Lock of a work folder, since two runs in one folder would delete each other's unfinished checkpoints."""

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from mmengine.logging import print_log

from ..utils.errors import UserError

NAME = '.run.lock'
_held: dict[str, int] = {}  # descriptors by path of the lock file; open until the process ends


def lock_folder(folder: str) -> None:
    """Lock a work folder until this process ends, for whatever reason.

    Uses a POSIX lock on the whole file: the kernel releases it when the process dies, child processes do not inherit
    it, and network file systems propagate it to other hosts.

    Args:
        folder (str): Work folder; created if missing.

    Raises:
        ValueError: If another running process holds the lock; the message names it.
    """
    path = str(Path(folder).resolve() / NAME)
    if path in _held:
        return
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = _describe(os.read(descriptor, 4096))
        os.close(descriptor)
        raise UserError(f'{folder} is in use by {holder}: pass another --work-dir, or end that run first') from error
    except OSError as error:
        os.close(descriptor)
        print_log(f'{folder} cannot be locked ({error.strerror}): do not start a second run in it', 'current')
        return
    os.ftruncate(descriptor, 0)
    os.write(
        descriptor,
        json.dumps(
            dict(
                process=os.getpid(),
                host=socket.gethostname(),
                since=time.strftime('%Y-%m-%d %H:%M:%S'),
                command=shlex.join(sys.argv),
            )
        ).encode(),
    )
    _held[path] = descriptor


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return (
            f'process {holder["process"]} on {holder["host"]} since {holder["since"]} ({str(holder["command"])[:200]})'
        )
    except (ValueError, KeyError, TypeError):
        return 'another run'
