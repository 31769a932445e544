"""What ``tools/train.py`` switches on by one flag each: trackers, weight averaging, early stopping, compilation.

Built on mmengine's visualizer backends and hooks. Differs from them in compiling the backbone alone, in early stopping
that remembers over a resumed run, takes a metric's short name and counts any gain, and in refusing a decay that is
given where mmengine wants one minus it.
"""
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from typing import Dict, List, Optional

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .errors import UserError
from .typos import nearest

EMA_MOMENTUM = 1e-4  # a decay of 0.9999, that of the paper's fine-tuning (tables 9 to 13)
PATIENCE = 5
STATE = 'early_stopping'


def add_train_options(parser: ArgumentParser) -> None:
    """Add the flags of this module to those of ``tools/train.py``."""
    parser.add_argument('--tensorboard', action='store_true', help='write what is logged for TensorBoard, too')
    parser.add_argument('--wandb', action='store_true', help='log to Weights & Biases, too; its variables '
                        'WANDB_MODE=offline, WANDB_PROJECT and WANDB_NAME hold')
    parser.add_argument('--ema', type=float, nargs='?', const=EMA_MOMENTUM, metavar='MOMENTUM',
                        help='average the weights, evaluate and save the average: average = (1 - MOMENTUM) * average '
                        f'+ MOMENTUM * weights; default {EMA_MOMENTUM}, which is a decay of {1 - EMA_MOMENTUM}')
    parser.add_argument('--early-stop', nargs='+', metavar=('METRIC', 'PATIENCE'),
                        help='stop when METRIC, such as bbox_mAP or mIoU, was no better than its best in PATIENCE '
                        f'evaluations in a row; default {PATIENCE}')
    parser.add_argument('--compile', nargs='?', const='inductor', metavar='BACKEND',
                        help='compile the backbone by torch.compile; default inductor')


def apply_train_options(cfg: Config, args: Namespace) -> None:
    """Carry the flags of :func:`add_train_options` into the config.

    Raises:
        ValueError: Naming the flag that cannot be honoured, and why.
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


def add_tracker(cfg: Config, flag: str, backend: str, package: str) -> None:
    """Add one of mmengine's backends to the visualizer of whatever scope.

    Raises:
        ValueError: If the package that it needs is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f'{flag} needs the package {package!r}: pip install {package}')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type='Visualizer'))
    backends = [*(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])]
    if backend not in [one['type'] for one in backends]:
        visualizer.vis_backends = [*backends, dict(type=backend)]


def average_weights(cfg: Config, momentum: float) -> None:
    """Average the weights after each optimizer step by mmengine's ``EMAHook``.

    Args:
        cfg (Config): A hook that it has already gets the momentum.
        momentum (float): The newest weights' share, one minus the decay; 0 < momentum <= 0.5.

    Raises:
        ValueError: If the momentum is none, or the model is sharded.
    """
    if not 0 < momentum <= 0.5:
        hint = f'; for a decay of {momentum} give {1 - momentum:.6g}' if 0.5 < momentum < 1 else ''
        raise UserError(f'--ema={momentum}: give the share of the newest weights, above 0 and at most 0.5{hint}.')
    if (cfg.get('strategy') or {}).get('type') == 'FSDP2Strategy':
        raise UserError("--ema needs a whole copy of the model, and strategy=dict(type='FSDP2Strategy') shards it: "
                        'take one of them out.')
    given = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') == 'EMAHook']
    for hook in given:
        hook.momentum = momentum
    if not given:
        steps = cfg.optim_wrapper.get('accumulative_counts', 1)  # the hook counts forwards
        _add_hook(cfg, type='EMAHook', momentum=momentum, interval=steps, priority='ABOVE_NORMAL')


def stop_early(cfg: Config, metric: str, patience: str = str(PATIENCE), *rest: str) -> None:
    """Stop when a metric no longer gets better; see :class:`BestScoreStoppingHook`.

    Raises:
        ValueError: If there is no evaluation, or the patience is no positive whole number.
    """
    if rest or not patience.isdecimal() or not int(patience):
        raise UserError(f'--early-stop {" ".join([metric, patience, *rest])}: give METRIC, or METRIC PATIENCE with '
                        'the number of evaluations to wait, at least 1; put the config before the flag.')
    if cfg.get('val_cfg') is None:
        raise UserError(f'--early-stop {metric}: the config has no evaluation (val_cfg), whose metric it could be.')
    _add_hook(cfg, type='BestScoreStoppingHook', monitor=metric, patience=int(patience))


def compile_backbone(cfg: Config, backend: str) -> None:
    """Compile the backbone alone; the heads of a detector change their shapes with every picture.

    Raises:
        ValueError: If torch has no such backend, or the config compiles the whole model.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(f'--compile={backend!r}: torch.compile has the backends {", ".join(known)}.')
    if cfg.get('compile'):
        raise UserError(f'--compile compiles the backbone, and compile={cfg.compile} of the config the whole model: '
                        'take one of them out.')
    _add_hook(cfg, type='CompileBackboneHook', backend=backend)


def _add_hook(cfg: Config, **hook) -> None:
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), ConfigDict(hook)]


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile ``model.backbone`` in place before training, so that names in checkpoints stay.

    Each size of pictures is compiled on its own, since inductor of torch 2.11 fails on graphs of any size; after
    ``torch._dynamo.config.recompile_limit`` (8) of them, other sizes run uncompiled.

    Args:
        backend (str): One of ``torch.compiler.list_backends()``. Defaults to ``'inductor'``.
    """

    def __init__(self, backend: str = 'inductor') -> None:
        self.backend = backend

    def before_train(self, runner: Runner) -> None:
        """Compile; the work is done at the first forward."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.backbone.compile(backend=self.backend, dynamic=False)
        runner.logger.info(f'the backbone is compiled by {self.backend}: the first iterations take longer')


@HOOKS.register_module()
class BestScoreStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook`` that counts any gain on the best score, and goes on counting when resumed.

    A checkpoint is written before the evaluation of the same iteration. A run resumed from it does not evaluate again,
    and that one evaluation is not counted.

    Args:
        monitor (str): A metric as it is logged, ``'coco/bbox_mAP'``, or its last part, ``'bbox_mAP'``.
        rule (str, optional): ``'greater'`` or ``'less'`` is better; by default inferred from the name.
        patience (int): Evaluations in a row without a gain. Defaults to 5.

    Raises:
        ValueError: If the rule cannot be inferred; at the first evaluation if it has no such metric.
    """

    def __init__(self, monitor: str, rule: Optional[str] = None, patience: int = PATIENCE) -> None:
        rule = rule or self._known_rule(monitor)
        super().__init__(monitor, rule, min_delta=1e-9, patience=patience)

    def _known_rule(self, monitor: str) -> str:
        try:
            return self._init_rule(monitor)
        except ValueError as error:
            raise UserError(
                f'early stopping on {monitor!r}: names with {", ".join(self._default_greater_keys)} should rise, with '
                f"{', '.join(self._default_less_keys)} fall; for another name set custom_hooks=[dict("
                f"type='{type(self).__name__}', monitor={monitor!r}, rule='greater')].") from error

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Compare with the best score, and end the training loop after too many evaluations without a gain."""
        self.monitor = find_metric(self.monitor, list(metrics or {}))
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the best score and the count."""
        checkpoint[STATE] = dict(best_score=float(self.best_score), wait_count=self.wait_count)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on from them in a resumed run."""
        if runner._resume:
            vars(self).update(checkpoint.get(STATE, {}))


def find_metric(name: str, known: List[str]) -> str:
    """Return the logged name of a metric that is given in full or by its last part.

    Raises:
        ValueError: If there is no such metric, or several; naming those there are.
    """
    found = [one for one in known if one == name] or [one for one in known if one.rpartition('/')[2] == name]
    if len(found) == 1:
        return found[0]
    meant = nearest(name, known)
    hint = f'did you mean {meant!r}? ' if meant else ''
    raise UserError(f'metric {name!r}: {hint}there is {", ".join(known)}.')
