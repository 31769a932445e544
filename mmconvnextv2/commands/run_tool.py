"""Runner for the command line tools: user errors print one line, bugs print a traceback."""

import errno
import gc
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from mmengine.dist import get_rank, is_distributed

from ..checkpoint.download import WEIGHTS_DIR
from ..engine.console import quiet_warnings
from ..utils.errors import UserError
from ..utils.suggestions import explain_build

IN_WORKER = 'Original Traceback (most recent call last)'  # torch includes a worker's traceback in the message
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SILENT = (
    'Timed out waiting',
    'timeout',
    'Connection closed by peer',
    'Connection reset by peer',
    'Broken pipe',
    'Watchdog caught collective operation',
)
NEEDS_COMPILED = 'needs compiled mmcv'  # an operator that torchvision lacks


def run_tool(tool: Callable[[Namespace], object], args: Namespace) -> None:
    """Run a command; errors that the user can fix exit with one line and status 1, others with a traceback.

    The user can fix errors that this package raises on purpose, and files that cannot be opened. ``--traceback`` shows
    where such an error was raised.
    """
    if not getattr(args, 'verbose', False):
        quiet_warnings()
    if getattr(args, 'weights_dir', None):  # for this process and those that it starts; a download creates the folder
        os.environ[WEIGHTS_DIR] = os.path.abspath(os.path.expanduser(args.weights_dir))
    try:
        tool(args)
    except Exception as error:
        message = user_message(error)
        if message is None or args.traceback:
            raise
        sys.exit(f'error: {message}')
    if dist.is_initialized():  # gloo's threads sometimes abort the process at interpreter exit
        gc.collect()  # the wrapped model keeps a reference to the group, too
        dist.destroy_process_group()


def run_subcommand(args: Namespace) -> None:
    """Run the function that a subcommand's parser set as ``run``, for tools with several subcommands."""
    args.run(args)


def user_message(error: BaseException | None) -> str | None:
    """Return the one-line message of an error that the user can fix, raised in this process or a data loader's worker.

    Returns:
        str | None: The message; None for any other error.
    """
    if error is None:
        return None
    if isinstance(error, UserError):
        text = str(error)
        if IN_WORKER in text:
            text = re.split(rf'^[\w.]*{type(error).__name__}: ', text, flags=re.MULTILINE)[-1]
        return ' '.join(text.split())
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    return explain_fault(error) or explain_build(error) or user_message(error.__cause__ or error.__context__)


def explain_fault(error: BaseException) -> str | None:
    """Return a one-line message for known faults of the machine or the environment, None for any other error.

    Known are a full disk, missing compiled operators, insufficient GPU memory, images of several sizes in one batch of
    an evaluation, a dead data worker, and another process that died or hangs.
    """
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f'the disk is full ({error.strerror}): free some space, and run the command again, tools/train.py with '
            '--resume. Files finished before are complete'
        )
    if isinstance(error, ImportError) and error.name == 'mmcv._ext':
        return (
            f'{text}: mmcv has no compiled operators here. Import mmconvnextv2 before mmdet, mmseg or mmcv.ops, or '
            'run `python -m mmconvnextv2 install-operators` once, and leave MMCONVNEXTV2_OPERATORS unset'
        )
    if isinstance(error, RuntimeError) and NEEDS_COMPILED in text:
        return text
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f'out of GPU memory: lower train_dataloader.batch_size or set model.backbone.with_cp. {text}'
    if 'The image size in a batch should be the same' in text:
        return (
            'val_dataloader and test_dataloader: a batch contains images of several sizes: set batch_size=1 for '
            'both, or pad the images with model.data_preprocessor.test_cfg.size_divisor=32'
        )
    if 'DataLoader worker' in text and ('exited unexpectedly' in text or 'is killed by signal' in text):
        return (
            f'{text.split(". ")[0].rstrip(".")}: a data worker died. The machine may be out of memory: '
            'lower train_dataloader.num_workers, then continue with --resume'
        )
    if isinstance(error, RuntimeError) and is_distributed() and any(sign in text for sign in SILENT):
        return (
            f'process {get_rank()} waited in vain for another process, which died or hangs (the limit is '
            f'env_cfg.dist_cfg.timeout, in seconds): see its log, then continue with --resume. {text}'
        )
    return None
