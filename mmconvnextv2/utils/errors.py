"""Errors that the user can mend: a command shows their message as one line, without a traceback."""


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
