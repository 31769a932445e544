"""Errors that the user can mend: a command shows their message as one line, without a traceback."""

import sys
import traceback

LIBRARIES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'pycocotools', 'torch', 'torchvision')


class UserError(ValueError):
    """A mistake in an argument, a config, a file or the data; the message says what was expected and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistingFileError(UserError, FileExistsError):
    """A file that would be overwritten."""


class FileError(UserError, OSError):
    """A file that cannot be read or written."""


class RunError(UserError, RuntimeError):
    """A run that cannot go on, for a reason outside the program."""


def place_of(error: BaseException) -> str:
    """Return the module in which an error was raised, the standard library's left out; '' for one never raised."""
    modules = [frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(modules) if name.partition('.')[0] not in sys.stdlib_module_names), '')


def raised_in_library(error: BaseException) -> bool:
    """Whether one of ``LIBRARIES`` raised an error, and neither this package nor code of the user's own."""
    return place_of(error).partition('.')[0] in LIBRARIES
