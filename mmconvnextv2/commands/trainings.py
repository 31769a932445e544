"""Trainings of one config that a tool runs one after the other, each in its own folder, and continues when it is called
again.
"""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.config import TOOLS
from ..utils.errors import UserError
from .arguments import add_traceback
from .report import read_entries
from .train import parse_train_args

METRICS = dict(mmdet='coco/bbox_mAP', mmseg='mIoU', mmpretrain='accuracy/top1')
FINISHED = 'finished'


class Run(NamedTuple):
    """One training: its settings, work folder and command."""

    settings: dict[str, Any]
    folder: Path
    command: list[str]

    def is_finished(self) -> bool:
        return (self.folder / FINISHED).exists()

    def line(self) -> str:
        """Return a line of shell that trains, and marks the run as finished."""
        return f'{shlex.join(self.command)} && touch {shlex.quote(str(self.folder / FINISHED))}'


def parse_run_options(parser: ArgumentParser, argv: Sequence[str] | None, metric: str, table: str) -> Namespace:
    """Add the options of tools that train many runs, and parse; arguments after ``--`` become ``train_args``.

    Args:
        parser (ArgumentParser): Parser with the tool's own arguments.
        argv (Sequence[str], optional): Arguments, those of the process if None.
        metric (str): Help of ``--metric``.
        table (str): Help of ``--table``.
    """
    parser.add_argument(
        '--gpus', type=int, default=0, help='launch each run with tools/dist_train.sh on this many GPUs'
    )
    parser.add_argument('--metric', help=metric)
    add_traceback(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--dry-run', action='store_true', help='print the commands of unfinished runs, one per line')
    instead.add_argument('--table', action='store_true', help=table)
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index('--') if '--' in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    args.train_args = argv[cut + 1 :]
    return args


def check_train_args(config: str, train_args: Sequence[str], flags: Sequence[str], keys: Iterable[str]) -> None:
    """Raise ``ValueError`` if the training arguments include flags or config keys that the tool sets for each run."""
    parsed = parse_train_args([config, *train_args])
    own = [flag for flag in flags if getattr(parsed, flag[2:].replace('-', '_')) is not None]
    own += [key for key in keys if key in (parsed.cfg_options or {})]
    if own:
        raise UserError(f'{own[0]} is set for each run: remove it from the arguments after `--`')


def note_plan(folder: Path, name: str, plan: dict) -> None:
    """Record what all runs in a folder have in common.

    Raises:
        ValueError: If the folder holds runs that have something else in common.
    """
    path = folder / name
    if path.exists() and json.loads(path.read_text()) != plan:
        raise UserError(f'{folder} contains other runs ({path.read_text().strip()}): pass another --work-dir')
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan) + '\n')


def command_of(args: Namespace, folder: Path, options: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Return the command of one run, which resumes if it was interrupted.

    Args:
        args (Namespace): Arguments of the tool: ``config``, ``gpus`` and ``train_args``.
        folder (Path): Work folder of the run.
        options (Sequence[str]): Overrides of the config, before those of the user.
        flags (Sequence[str]): Other arguments of ``tools/train.py``.
    """
    start = [sys.executable, str(TOOLS / 'train.py'), args.config]
    if args.gpus:
        start = ['env', f'PYTHON={sys.executable}', 'bash', str(TOOLS / 'dist_train.sh'), args.config, str(args.gpus)]
    rest, flag = list(args.train_args), '--cfg-options'
    cut = rest.index(flag) + 1 if flag in rest else len(rest)
    options = options if flag in rest else [flag, *options] if options else []
    return [*start, '--resume', '--work-dir', str(folder), *flags, *rest[:cut], *options, *rest[cut:]]


def train(run: Run) -> bool:
    """Train one run with its output in ``console.log``, and return whether it finished."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / 'console.log', 'a') as log, _leaving_none_behind():
        process = subprocess.Popen(run.command, stdout=log, stderr=subprocess.STDOUT)
        try:
            ended = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if ended == 0:
        (run.folder / FINISHED).touch()
    return ended == 0


@contextlib.contextmanager
def _leaving_none_behind() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a tool which is stopped stops its training, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped: run the same command to continue'))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def logged_by(run: Run) -> list[dict]:
    """Return the log entries of a run, empty if it has none; see :func:`~mmconvnextv2.commands.report.read_entries`."""
    return read_entries(sorted(path.parent for path in run.folder.glob('*/vis_data')))
