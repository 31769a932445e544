"""Flags of ``tools/train.py`` for trackers, weight averaging, early stopping, compilation and fractions of the labels.

Built on mmengine's visualizer backends and hooks, with these differences: only the backbone is compiled; the state of
early stopping survives a resume, its metric can be given by its short name, and any improvement counts; an EMA decay
passed as a momentum (one minus the decay) is rejected.
"""

from argparse import ArgumentParser, Namespace
from copy import deepcopy
from importlib.util import find_spec

import torch
from mmengine.config import Config, ConfigDict

from ..datasets.fraction import LabelFraction
from ..engine.hooks.early_stopping import PATIENCE
from ..utils.config import inner_datasets
from ..utils.errors import UserError

EMA_MOMENTUM = 1e-4  # a decay of 0.9999, as in the paper's fine-tuning (tables 9 to 13)


def add_train_options(parser: ArgumentParser) -> None:
    """Add the flags of this module to the parser of ``tools/train.py``."""
    parser.add_argument('--tensorboard', action='store_true', help='also log to TensorBoard')
    parser.add_argument(
        '--wandb',
        action='store_true',
        help='also log to Weights & Biases; honours its variables such as WANDB_MODE=offline, WANDB_PROJECT and '
        'WANDB_NAME',
    )
    parser.add_argument(
        '--ema',
        type=float,
        nargs='?',
        const=EMA_MOMENTUM,
        metavar='MOMENTUM',
        help='average the weights, and evaluate and save the average: average = (1 - MOMENTUM) * average '
        f'+ MOMENTUM * weights; default {EMA_MOMENTUM}, which is a decay of {1 - EMA_MOMENTUM}',
    )
    parser.add_argument(
        '--early-stop',
        nargs='+',
        metavar=('METRIC', 'PATIENCE'),
        help='stop when METRIC, such as bbox_mAP or mIoU, has not improved in PATIENCE consecutive evaluations; '
        f'default {PATIENCE}',
    )
    parser.add_argument(
        '--fraction',
        type=float,
        metavar='SHARE',
        help='train on this share of the labelled images, in (0, 1], chosen by --seed; the run stays as long',
    )
    parser.add_argument(
        '--compile',
        nargs='?',
        const='inductor',
        metavar='MODE',
        help='compile the backbone, or forward and loss of FCMAE, with torch.compile: a mode of inductor, such as '
        'reduce-overhead, which captures CUDA graphs, or a backend; default inductor',
    )


def apply_train_options(cfg: Config, args: Namespace) -> None:
    """Apply the flags of :func:`add_train_options` to the config.

    Raises:
        ValueError: If a flag cannot be applied; the message names it and the reason.
    """
    if args.tensorboard:
        add_tracker(cfg, '--tensorboard', 'TensorboardVisBackend', 'tensorboard')
    if args.wandb:
        add_tracker(cfg, '--wandb', 'WandbVisBackend', 'wandb')
    if args.ema is not None:
        average_weights(cfg, args.ema)
    if args.early_stop:
        stop_early(cfg, *args.early_stop)
    if args.compile:
        compile_backbone(cfg, args.compile)
    if args.fraction is not None:
        take_fraction(cfg, args.fraction)


def add_tracker(cfg: Config, flag: str, backend: str, package: str) -> None:
    """Add one of mmengine's backends to the visualizer of any scope.

    Raises:
        ValueError: If the package that the backend needs is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f'{flag} needs the package {package!r}: pip install {package}')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = [*(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])]
    if backend not in [one['type'] for one in backends]:
        visualizer.vis_backends = [*backends, dict(type=backend)]


def average_weights(cfg: Config, momentum: float) -> None:
    """Average the weights after each optimizer step with mmengine's ``EMAHook``.

    Args:
        cfg (Config): Config to change; if it already has such a hook, only the momentum is set.
        momentum (float): Weight of the newest parameters, one minus the decay; 0 < momentum <= 0.5.

    Raises:
        ValueError: If the momentum is out of range, or the model is sharded.
    """
    if not 0 < momentum <= 0.5:
        hint = f'; for a decay of {momentum} pass {1 - momentum:.6g}' if 0.5 < momentum < 1 else ''
        raise UserError(f'--ema={momentum}: expected a momentum above 0 and at most 0.5{hint}')
    if (cfg.get('strategy') or {}).get('type') == 'FSDP2Strategy':
        raise UserError(
            "--ema needs a full copy of the model, but strategy=dict(type='FSDP2Strategy') shards it: "
            'remove one of them'
        )
    given = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') == 'EMAHook']
    for hook in given:
        hook.momentum = momentum
    if not given:
        steps = cfg.optim_wrapper.get('accumulative_counts', 1)  # the hook counts forwards
        _add_hook(cfg, type='EMAHook', momentum=momentum, interval=steps, priority='ABOVE_NORMAL')


def stop_early(cfg: Config, metric: str, patience: str = str(PATIENCE), *rest: str) -> None:
    """Stop when a metric no longer improves; see :class:`BestScoreStoppingHook`.

    Raises:
        ValueError: If there is no evaluation, or the patience is not a positive whole number.
    """
    if rest or not patience.isdecimal() or not int(patience):
        raise UserError(
            f'--early-stop {" ".join([metric, patience, *rest])}: expected METRIC, or METRIC PATIENCE with '
            'the number of evaluations to wait, at least 1; put the config before the flag'
        )
    if cfg.get('val_cfg') is None:
        raise UserError(f'--early-stop {metric}: the config has no evaluation (val_cfg) that could log a metric')
    _add_hook(cfg, type='BestScoreStoppingHook', monitor=metric, patience=int(patience))


def compile_backbone(cfg: Config, name: str) -> None:
    """Compile with :class:`CompileBackboneHook`: shapes in a detector's heads change with every image.

    Args:
        cfg (Config): Config to change.
        name (str): Mode of inductor, or backend.

    Raises:
        ValueError: If torch has no such mode or backend, or the config compiles the whole model.
    """
    modes, known = torch._inductor.list_mode_options(), torch.compiler.list_backends(exclude_tags=())
    if name not in (*modes, *known):
        raise UserError(
            f'--compile={name!r}: expected one of the modes {", ".join(modes)}, or of the backends '
            f'{", ".join(torch.compiler.list_backends())}'
        )
    if cfg.get('compile'):
        raise UserError(
            f'--compile compiles the backbone, but compile={cfg.compile} in the config compiles the whole model: '
            'remove one of them'
        )
    _add_hook(cfg, type='CompileBackboneHook', **(dict(mode=name) if name in modes else dict(backend=name)))


def take_fraction(cfg: Config, fraction: float) -> None:
    """Train on a fraction of the labelled images; see :class:`~mmconvnextv2.datasets.fraction.LabelFraction`.

    Args:
        cfg (Config): Config to change.
        fraction (float): Share of the images, in (0, 1], chosen by ``randomness.seed``.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f'--fraction={fraction}: expected a share in (0, 1], such as 0.1')
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    for dataset in list(inner_datasets(cfg.train_dataloader.dataset)):
        inner = deepcopy(dataset)
        dataset.clear()
        dataset.update(type=LabelFraction.__name__, dataset=inner, fraction=fraction, seed=seed)


def _add_hook(cfg: Config, **hook) -> None:
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), ConfigDict(hook)]
