"""Arguments shared by the tools, and the config that results from them."""

import os
from argparse import ArgumentParser, Namespace
from copy import deepcopy
from importlib import import_module
from typing import Any

from mmengine.config import Config, DictAction

from ..utils.config import read_config
from ..utils.errors import UserError
from ..utils.suggestions import check_overrides
from .data_checks import settle_data

MISFITS = (AttributeError, IndexError, KeyError, TypeError)  # raised by mmengine for overrides that do not fit
OURS = dict(mmdet=('datasets.coco', 'models.fp32_detection'), mmseg=('datasets.segmentation',))
VISUALIZATION_HOOKS = dict(
    mmdet=dict(type='DetVisualizationHook'),
    mmpretrain=dict(type='VisualizationHook'),
    mmseg=dict(type='SegVisualizationHook'),
)


def add_config_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--traceback``, for every tool that reads a config."""
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value ...')
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
    add_config_options(parser)


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, normalise its data settings and import the package of its ``default_scope``.

    Args:
        path (str): Path of the config file.
        options (dict, optional): Overrides by dotted key, as in ``--cfg-options``. Defaults to None.

    Raises:
        ValueError: If the file does not exist, an override has an unknown key, or ``default_scope`` is not installed.
    """
    cfg = read_config(path)
    check_overrides(cfg, options)
    _merge(cfg, {key: whole_path(value) for key, value in (options or {}).items()})
    settle_data(cfg)
    import_scope(cfg)
    return cfg


def _merge(cfg: Config, options: dict[str, Any]) -> None:
    try:
        cfg.merge_from_dict(options)
    except MISFITS as error:
        for key, value in options.items():  # find the override that fails alone
            try:
                deepcopy(cfg).merge_from_dict({key: value})
            except MISFITS:
                raise UserError(
                    f'--cfg-options {key}={value} does not fit the config ({error}): the parts of a dotted key '
                    'must be keys of dicts, or indices of lists of dicts'
                ) from error
        raise


def load_run_config(args: Namespace) -> Config:
    """Read the config of a run, and set its launcher and work folder from the arguments; see :func:`load_config`."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    name = os.path.splitext(os.path.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    return cfg


def whole_path(value: object) -> object:
    """Rejoin an existing path with commas, which ``--cfg-options`` splits to a list; return other values unchanged."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        joined = ','.join(value)
        return joined if os.path.exists(joined) else value
    return value


def import_scope(cfg: Config) -> None:
    """Import the package of ``default_scope``, which registers its classes.

    Raises:
        ValueError: If the scope is unknown or not installed.
    """
    scope = cfg.get('default_scope')
    if scope not in VISUALIZATION_HOOKS:
        raise UserError(f'default_scope={scope!r} is unknown: expected one of {sorted(VISUALIZATION_HOOKS)}')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        for name in OURS.get(scope, ()):  # even if the user's config replaces custom_imports
            import_module(f'mmconvnextv2.{name}')
    except ModuleNotFoundError as error:
        raise UserError(f'default_scope={scope!r} needs the package {error.name!r}: install it first') from error


def check_checkpoint(path: str | None, argument: str) -> None:
    if path and '://' not in path and not os.path.isfile(path):
        raise UserError(f'{argument}={path!r} does not exist: pass a checkpoint file or its URL')
