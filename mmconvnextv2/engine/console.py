"""A quiet start: what MMEngine logs before the first loss goes to the log file, and little of it to the console.

A run of 0.1 printed 870 lines before its first loss: the config, the environment, the hooks of each stage, and
deprecation warnings of the libraries. The config is in the work folder, and the log file has everything.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Messages of MMEngine, MMDetection and MMSegmentation, by how they begin
NOISE = (
    '\n------------------------------------------------------------\nSystem environment:',
    'Config:\n',
    'Distributed training is not used, all SyncBatchNorm',
    'Hooks will be executed in the following order:',
    'The prefix is not set in metric class',
    '"FileClient" will be deprecated in future',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    'Checkpoints will be saved to',
)
# Warnings about the libraries' own code or defaults, which no user of ours can act on
WARNINGS = (
    r'`reduce_zero_label` will be deprecated',
    r'``build_loss`` would be deprecated',
    r'Default ``avg_non_ignore`` is False',
    r'The draw is False',
    r'Warning: The (polygon|bbox|circle|line|text) is out of bounds',
    r'``MultiScaleDeformableAttention`` has been moved',
    r'`torch.jit.',
    r'__floordiv__ is deprecated',
    r'torch.meshgrid: in an upcoming release',
    r'Apply a shape dtype checking',
    r"'pin_memory' argument is set as true but no accelerator",
)


class QuietStart(logging.Filter):
    """Keeps ``NOISE`` from a handler, at levels up to a warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        return record.levelno > logging.WARNING or not str(record.msg).startswith(NOISE)


def quiet_console(logger: logging.Logger) -> None:
    """Keep ``NOISE`` from the console handlers of a logger; its file handlers stay as they are."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(QuietStart())


def quiet_warnings() -> None:
    """Ignore ``WARNINGS`` in this process; a command's entry point calls it, importing the package does not."""
    for message in WARNINGS:
        warnings.filterwarnings('ignore', message=message)


@contextmanager
def discarded_stderr() -> Iterator[None]:
    """Discard what this process and its children write to the standard error, such as a shell's "gcc: not found"."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
