"""Arguments shared by the tools, and the config that results from them."""

import os
from argparse import ArgumentParser, Namespace

from mmengine.config import Config, DictAction

from ..checkpoint.download import WEIGHTS_DIR
from ..engine.inference.speed import AMP
from ..utils.config import load_config
from ..utils.errors import UserError
from ..utils.public_models import find_config, get_model, is_name

CHECKPOINTS = ('.pth', '.pt', '.safetensors')
VISUALIZATION_HOOKS = dict(
    mmdet=dict(type='DetVisualizationHook'),
    mmpretrain=dict(type='VisualizationHook'),
    mmseg=dict(type='SegVisualizationHook'),
)


def add_weights_dir(parser: ArgumentParser) -> None:
    """Add ``--weights-dir``, for every tool that reads weights; ``run_tool`` applies it."""
    parser.add_argument(
        '--weights-dir',
        metavar='DIR',
        help=f"folder of downloaded weights, in place of torch's cache, for machines without a network; {WEIGHTS_DIR} "
        'in the environment does the same',
    )


def add_config_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``, ``--weights-dir`` and ``--traceback``, for every tool that reads a config."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value ...')
    add_weights_dir(parser)
    add_traceback(parser)


def add_traceback(parser: ArgumentParser) -> None:
    """Add ``--traceback``, for every tool."""
    parser.add_argument('--traceback', action='store_true', help='show where in the code an error was found')


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add the arguments shared by ``tools/train.py`` and ``tools/test.py``, under OpenMMLab's names."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default work_dirs/CONFIG_NAME')
    parser.add_argument('--skip-data-checks', action='store_true', help='start without reading annotations and labels')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed')
    parser.add_argument('--verbose', action='store_true', help='print all that is logged: config, hooks, environment')
    add_config_options(parser)


def add_speed(parser: ArgumentParser) -> None:
    """Add ``--amp`` and ``--compile``, for tools that predict."""
    parser.add_argument(
        '--amp',
        nargs='?',
        const='bfloat16',
        choices=AMP,
        help='predict under autocast to bfloat16, or float16; boxes and norms stay float32',
    )
    parser.add_argument('--compile', action='store_true', help='compile the backbone, once per image size')


def load_run_config(args: Namespace) -> Config:
    """Read the config of a run, and set its launcher and work folder from the arguments; see :func:`load_config`."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.verbose:
        cfg.verbose = True
    name = os.path.splitext(os.path.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    return cfg


def settle_name(parser: ArgumentParser, args: Namespace) -> str | None:
    """Let the name of a public model in ``args.config`` bring its own checkpoint, unless a checkpoint file is given.

    Returns:
        str, optional: What stood in the place of the checkpoint and is not one, the first input.
    """
    if os.path.isfile(args.config) or not is_name(args.config) or (args.checkpoint or '').endswith(CHECKPOINTS):
        return None
    try:
        get_model(args.config)
    except UserError as error:
        if find_config(args.config) is None:  # else the name of a recipe without public weights
            parser.error(str(error))
        return None
    first, args.checkpoint = args.checkpoint, args.config
    return first


def check_checkpoint(path: str | None, argument: str) -> None:
    if not path or '://' in path or os.path.isfile(path):
        return
    if is_name(path):
        get_model(path)
    else:
        raise UserError(
            f'{argument}={path!r} does not exist: pass a checkpoint file, its URL or the name of a public model'
        )
