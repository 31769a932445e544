"""Errors that the user can fix; a command prints their message as one line, without a traceback."""

import sys
import traceback

LIBRARIES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'pycocotools', 'torch', 'torchvision')


class UserError(ValueError):
    """Mistake in an argument, a config, a file or the data; the message says what was expected and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """Missing file or folder."""


class ExistingFileError(UserError, FileExistsError):
    """Existing file that would be overwritten."""


class FileError(UserError, OSError):
    """File that cannot be read or written."""


class RunError(UserError, RuntimeError):
    """Run that cannot continue, for a reason outside the program."""


def place_of(error: BaseException) -> str:
    """Return the innermost module outside the standard library that an error came through, '' if none."""
    modules = [frame.f_globals.get('__name__', '') for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(modules) if name.partition('.')[0] not in sys.stdlib_module_names), '')


def raised_in_library(error: BaseException) -> bool:
    """Return whether an error was raised by one of ``LIBRARIES``, not by this package or the user's code."""
    return place_of(error).partition('.')[0] in LIBRARIES
