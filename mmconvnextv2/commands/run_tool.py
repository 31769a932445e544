"""Run a tool: user errors print one line, bugs print a traceback."""

import errno
import gc
import re
import sys
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from mmengine.dist import get_rank, is_distributed

from ..engine.console import quiet_warnings
from ..utils.errors import UserError
from ..utils.suggestions import explain_build

IN_WORKER = 'Original Traceback (most recent call last)'  # torch puts a worker's traceback into the message
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
    """Run a command; what the user can mend ends as one line and exit status 1, anything else as a traceback.

    Errors that this package raises on purpose, and files that cannot be opened, are the user's to mend;
    ``--traceback`` shows where they were found.
    """
    if not getattr(args, 'verbose', False):
        quiet_warnings()
    try:
        tool(args)
    except Exception as error:
        message = user_message(error)
        if message is None or args.traceback:
            raise
        sys.exit(f'error: {message}')
    if dist.is_initialized():  # left to the interpreter's end, gloo's threads abort the process now and then
        gc.collect()  # the wrapped model holds the group too
        dist.destroy_process_group()


def run_subcommand(args: Namespace) -> None:
    """Run what a subcommand's parser set as ``run``; for tools that have several."""
    args.run(args)


def user_message(error: BaseException | None) -> str | None:
    """Return the one-line message of an error that is the user's to mend, in this process or a data loader's worker;
    None for any other."""
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
    """Return one line for the known faults of a machine, None for any other error.

    These are a full disk, a data loader's worker that died, another process that died or hangs, and too little memory
    on the GPU.
    """
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f'the disk is full ({error.strerror}): make room, and call again what failed, tools/train.py with '
            '--resume; what was finished before is whole'
        )
    if isinstance(error, ImportError) and error.name == 'mmcv._ext':
        return (
            f'{text}: mmcv has no compiled operators here. Import mmconvnextv2 before mmdet, mmseg or mmcv.ops, or '
            'run `python -m mmconvnextv2 install-operators` once, and leave MMCONVNEXTV2_OPERATORS unset'
        )
    if isinstance(error, RuntimeError) and NEEDS_COMPILED in text:
        return text
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f'too little GPU memory: lower train_dataloader.batch_size or set model.backbone.with_cp. {text}'
    if 'The image size in a batch should be the same' in text:
        return (
            'val_dataloader and test_dataloader: images of several sizes are in one batch: set batch_size=1 for '
            'both, or pad them with model.data_preprocessor.test_cfg.size_divisor=32'
        )
    if 'DataLoader worker' in text and ('exited unexpectedly' in text or 'is killed by signal' in text):
        return (
            f'{text.split(". ")[0].rstrip(".")}: a process that reads data died. The machine may lack memory: '
            'lower train_dataloader.num_workers, then go on with --resume'
        )
    if isinstance(error, RuntimeError) and is_distributed() and any(sign in text for sign in SILENT):
        return (
            f'process {get_rank()} waited in vain for another one, which died or hangs (the limit is '
            f'env_cfg.dist_cfg.timeout, in seconds): see its log, then go on with --resume. {text}'
        )
    return None
