"""Schedules that follow the length of a run: overriding ``train_cfg.max_epochs`` or ``max_iters`` shortens a recipe.

MMEngine takes the begin and end of each scheduler as written, so a recipe of 800 epochs that runs for 10 never leaves
its warm-up. Here the schedulers are scaled with the run. A run whose schedulers already end with it is left unchanged.
"""

from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError

# Keys of schedulers that count epochs or iterations
POINTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size', 'period')
WARMUPS = ('ConstantLR', 'LinearLR')
MAX_WARMUP_SHARE = 0.1  # of the run, for warm-ups counted in iterations in a run counted in epochs


def run_length(cfg: Config) -> tuple[str, int] | None:
    """Return the unit (``'epochs'`` or ``'iterations'``) and the length of a config's run, None without training."""
    loop = cfg.get('train_cfg') or {}
    if loop.get('max_epochs') is not None and loop.get('max_iters') is not None:
        unit, other = ('max_iters', 'max_epochs') if 'Iter' in str(loop.get('type')) else ('max_epochs', 'max_iters')
        raise UserError(
            f'train_cfg.{other}={loop[other]}: this recipe is counted by train_cfg.{unit}, set that instead'
        )
    for key, unit in (('max_epochs', 'epochs'), ('max_iters', 'iterations')):
        if loop.get(key) is not None:
            if not isinstance(loop[key], int) or loop[key] < 1:
                raise UserError(f'train_cfg.{key}={loop[key]!r}: expected a whole number of at least 1')
            return unit, loop[key]
    return None


def schedulers_of(param_scheduler: Any) -> Iterator[dict]:
    """Yield the schedulers of a config's ``param_scheduler``, which may be nested by optimizer."""
    if isinstance(param_scheduler, dict) and 'type' in param_scheduler:
        yield param_scheduler
    elif isinstance(param_scheduler, (dict, list, tuple)):
        for child in param_scheduler.values() if isinstance(param_scheduler, dict) else param_scheduler:
            yield from schedulers_of(child)


def scheduled_length(schedulers: list[dict], unit: str) -> int | None:
    """Return the length that schedulers were written for: the last ``end`` after the warm-up, in the unit of the run.

    None if there is nothing but a warm-up, or if a scheduler has no end and so follows the run already.
    """
    main = [one for one in schedulers if _counts(one, unit) and one['type'] not in WARMUPS]
    ends = [one.get('end', 0) for one in main]
    return max(ends) if ends and all(0 < end < 1e9 for end in ends) else None


def _counts(scheduler: dict, unit: str) -> bool:
    return scheduler.get('by_epoch', True) == (unit == 'epochs')


def fit_schedule(cfg: Config) -> str | None:
    """Scale a config's schedulers to the length of its run, in place.

    A recipe whose schedulers end at epoch 800 and whose ``train_cfg.max_epochs`` is 10 gets 10 / 800 of every begin,
    end and milestone. Intervals of evaluation and checkpoints that would never be reached shrink alike.
    ``fit_schedule=False`` in the config turns this off.

    Args:
        cfg (Config): The config; its ``param_scheduler``, ``train_cfg`` and hooks are modified.

    Returns:
        str, optional: What was scaled, for the log; None if nothing was.

    Raises:
        ValueError: If ``max_epochs`` or ``max_iters`` is not a whole number of at least 1.
    """
    length = run_length(cfg)
    if length is None or not cfg.get('fit_schedule', True):
        return None
    unit, new = length
    schedulers = list(schedulers_of(cfg.get('param_scheduler')))
    old = scheduled_length(schedulers, unit)
    if old is None or old == new:
        return None
    for scheduler in schedulers:
        _scale(scheduler, new / old)
    _shrink_intervals(cfg, unit, old, new)
    return f'the schedule of {old} {unit} was scaled to {new} {unit} (fit_schedule=False leaves it as written)'


def _scale(scheduler: dict, factor: float) -> None:
    if scheduler.get('end', 1) <= scheduler.get('begin', 0):
        return  # MMEngine rejects it, with the values as written
    if scheduler.get('by_epoch', True):
        _apply(scheduler, lambda value: _whole(round(value * factor, 6)))
        if not all(isinstance(value, int) for value in _points(scheduler)):
            scheduler['convert_to_iter_based'] = True  # parts of epochs
    else:
        _apply(scheduler, lambda value: max(round(value * factor), min(int(value), 1)))
        _keep_order(scheduler)


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _apply(scheduler: dict, function: Callable[[float], float]) -> None:
    """Change whatever counts epochs or iterations in a scheduler, in place; 1e9 is MMEngine's infinity."""
    for key in POINTS:
        if isinstance(scheduler.get(key), (int, float)) and scheduler[key] < 1e9:
            scheduler[key] = function(scheduler[key])
    if 'milestones' in scheduler:
        scheduler['milestones'] = [function(one) for one in scheduler['milestones']]


def _points(scheduler: dict) -> list[float]:
    return [scheduler[key] for key in POINTS if key in scheduler] + list(scheduler.get('milestones', ()))


def _keep_order(scheduler: dict) -> None:
    """Give a scheduler of a very short run the one step that MMEngine asks of it."""
    if 'end' in scheduler and scheduler['end'] <= scheduler.get('begin', 0):
        scheduler['end'] = max(scheduler['end'], 1)
        scheduler['begin'] = scheduler['end'] - 1


def _shrink_intervals(cfg: Config, unit: str, old: int, new: int) -> None:
    """Shrink the intervals that a shorter run would never reach."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    owners = [(cfg.train_cfg, 'val_interval')]
    for hook in hooks:
        if isinstance(hook, dict):
            by_epoch = hook.get('by_epoch', unit == 'epochs')
            if by_epoch == (unit == 'epochs') and hook.get('type') != 'LoggerHook':
                owners += [(hook, 'interval'), (hook, 'switch_epoch')]
    for owner, key in owners:
        if isinstance(owner.get(key), int) and owner[key] > new:
            owner[key] = max(1, round(owner[key] * new / old))


def settle_iterations(param_scheduler: Any, iterations_per_epoch: int, max_iters: int) -> str | None:
    """Settle what depends on the length of an epoch, in place: parts of epochs, and warm-ups longer than the run.

    Detection recipes warm up for 500 or 1000 iterations, 1 % of their schedule on COCO; 32 images in batches of 2 make
    192 iterations in 12 epochs. A warm-up that is counted in iterations in a run that is counted in epochs is cut to a
    tenth of the run.

    Args:
        param_scheduler: The ``param_scheduler`` of a config.
        iterations_per_epoch (int): Batches per epoch.
        max_iters (int): Iterations of the run.

    Returns:
        str, optional: What was cut, for the log; None if nothing was.
    """
    schedulers = list(schedulers_of(param_scheduler))
    counted = [one for one in schedulers if not one.get('by_epoch', True)]  # as written
    for scheduler in schedulers:
        if any(value != int(value) for value in _points(scheduler)):  # MMEngine rounds down, milestones not at all
            scheduler.pop('convert_to_iter_based', None)
            scheduler['by_epoch'] = False
            _apply(scheduler, lambda value: round(value * iterations_per_epoch))
            _keep_order(scheduler)
    if len(counted) == len(schedulers):
        return None
    most = max(1, int(max_iters * MAX_WARMUP_SHARE))
    for scheduler in counted:
        if scheduler['type'] in WARMUPS and not scheduler.get('begin', 0) and most < scheduler.get('end', 0) < 1e9:
            old, scheduler['end'] = scheduler['end'], most
            for later in counted:
                if later.get('begin') == old:
                    later['begin'] = most
            return f'the warm-up of {old} iterations was cut to {most}, a tenth of the run'
    return None


def warmup_iterations(param_scheduler: Any, iterations_per_epoch: int) -> int:
    """Return the iterations for which schedulers that begin with the run raise the learning rate."""
    ends = [0]
    for scheduler in schedulers_of(param_scheduler):
        rises = scheduler.get('type') in WARMUPS and scheduler.get('start_factor', scheduler.get('factor', 1)) < 1
        if rises and not scheduler.get('begin', 0) and scheduler.get('end', 0) < 1e9:
            by_epoch = scheduler.get('by_epoch', True)
            ends.append(int(scheduler.get('end', 0) * (iterations_per_epoch if by_epoch else 1)))
    return max(ends)
