"""Intermediate results of an image that is predicted in parts, on disk, from which an interrupted run continues.

A file is complete or absent, so a run may be killed at any point.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.rasters import Window
from ...utils.atomic import replacing
from ...utils.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming_full_disk(path: str) -> Iterator[None]:
    """Raise ``RuntimeError`` that says what to do if a file cannot be written for lack of space."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunError(
            f'no space left for {path}: free some, and run the same command to continue where it stopped'
        ) from error


class TileStore:
    """Folder of intermediate results.

    Args:
        folder (str): The folder; it is created.
        settings (dict): What the results depend on, in JSON types. A folder of other settings is emptied.
    """

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        self.folder, noted = folder, os.path.join(folder, 'settings.json')
        settings, found = json.loads(json.dumps(settings)), None
        with suppress(OSError, ValueError), open(noted, encoding='utf-8') as file:
            found = json.load(file)
        if found != settings:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            with naming_full_disk(folder), replacing(noted) as partial, open(partial, 'w', encoding='utf-8') as file:
                json.dump(settings, file)
        for name in os.listdir(folder):
            if name.endswith('.partial'):  # of a killed run
                os.remove(os.path.join(folder, name))

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.folder, name)

    def has(self, name: str) -> bool:
        """Return whether a file is complete."""
        return os.path.exists(self.path(name))

    def save(self, name: str, **values: np.ndarray) -> None:
        """Write arrays."""
        with naming_full_disk(self.folder), replacing(self.path(name)) as partial, open(partial, 'wb') as file:
            np.savez(file, **values)

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """Read arrays; None if the file does not exist."""
        if not self.has(name):
            return None
        with np.load(self.path(name), allow_pickle=False) as content:
            return dict(content)

    def save_json(self, name: str, value: Any) -> None:
        """Write a value of JSON types."""
        with (
            naming_full_disk(self.folder),
            replacing(self.path(name)) as partial,
            open(partial, 'w', encoding='utf-8') as file,
        ):
            json.dump(value, file)

    def load_json(self, name: str) -> Any:
        """Read a value of JSON types; None if the file does not exist."""
        if not self.has(name):
            return None
        with open(self.path(name), encoding='utf-8') as file:
            return json.load(file)

    def remove(self, *names: str) -> None:
        """Remove files, as far as they exist."""
        for name in names:
            with suppress(FileNotFoundError):
                os.remove(self.path(name))

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class SiteFile:
    """Sites of a whole image in a file, float32 (H, W, C), read and written by windows.

    It is not memory-mapped: pages of a map count as the process's memory, and a full disk would kill the process.

    Args:
        path (str): The file; it is created by the first write.
        height (int): Rows H.
        width (int): Columns W.
        channels (int): Channels C.
    """

    def __init__(self, path: str, height: int, width: int, channels: int) -> None:
        self.path, self.height, self.width, self.channels = path, height, width, channels

    def read(self, window: Window) -> Tensor:
        """Return the sites of a window, (1, h * w, C)."""
        values = np.empty((window.height, window.width, self.channels), np.float32)
        with open(self.path, 'rb', buffering=0) as file:
            for row, place in enumerate(self._places(window)):
                file.seek(place)
                file.readinto(values[row])
        return torch.from_numpy(values).flatten(0, 1)[None]

    def write(self, window: Window, sites: Tensor) -> None:
        """Write the sites of a window, (1, h * w, C)."""
        values = sites.float().cpu().reshape(window.height, window.width, self.channels).numpy()
        with naming_full_disk(self.path), open(self.path, 'r+b' if os.path.exists(self.path) else 'w+b') as file:
            for row, place in zip(values, self._places(window)):
                file.seek(place)
                file.write(row.tobytes())

    def _places(self, window: Window) -> list[int]:
        """Return the offset of each row of a window, in bytes."""
        rows = range(window.top, window.bottom)
        return [(row * self.width + window.left) * self.channels * 4 for row in rows]
