"""Which files are pictures."""
import os
from typing import List, Sequence

from mmengine.utils import scandir

from .errors import MissingFileError, UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.bmp', '.webp', '.tif', '.tiff')


def list_pictures(paths: Sequence[str]) -> List[str]:
    """Return picture files, those of folders in order of name.

    Raises:
        FileNotFoundError: If a path is not there.
        ValueError: If there is no picture.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            names = scandir(path, suffix=EXTENSIONS, recursive=True, case_sensitive=False)
            files += [os.path.join(path, name) for name in sorted(names)]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise MissingFileError(f'{path} does not exist')
    if not files:
        raise UserError(f'there is no picture ({", ".join(EXTENSIONS)}) in {list(paths)}')
    return files
