"""ResumeHook: reject config changes that a resumed run cannot follow; apply and log the others.

mmengine restores the checkpoint's optimizer hyperparameters and schedule whatever the config says, and keeps counting
iterations even if the length of an epoch has changed.
"""

import json
import os
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...checkpoint.training_state import advance_schedulers
from ...utils.errors import UserError

FACTS = 'training_facts'  # key in the message hub, which checkpoints store
SCHEDULE = ('learning rate', 'schedule', 'end', 'iterations in an epoch')
SKIPPED = ('params', 'lr', 'initial_lr', 'param_names')


def training_facts(runner: Runner) -> dict[str, Any]:
    """Return what the course of training depends on, as JSON values."""
    loop, cfg = runner.train_loop, runner.cfg
    loader = loop.dataloader
    batch = getattr(loader, 'batch_size', None) or getattr(loader.batch_sampler, 'batch_size', 0)
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    groups = runner.optim_wrapper.optimizer.param_groups
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    facts = {
        'images': len(loader.dataset) if hasattr(loader.dataset, '__len__') else None,
        'images in an update': batch * get_world_size() * accumulated,
        'iterations in an epoch': len(loader) if by_epoch else None,
        'end': f'{loop.max_epochs} epochs' if by_epoch else f'{loop.max_iters} iterations',
        'learning rate': [group.get('initial_lr', group['lr']) for group in groups],
        'schedule': cfg.get('param_scheduler'),
        'arch': (cfg.get('model') or {}).get('backbone', {}).get('arch'),
        'classes': (getattr(loader.dataset, 'metainfo', None) or {}).get('classes'),
    }
    return json.loads(json.dumps(facts, default=str))


class ResumeHook(Hook):
    """Compare a checkpoint with the config of the run that resumes from it.

    Rejected are optimizer moments whose shapes differ from the parameters', other parameter groups, the same classes in
    another order, and, in the middle of an epoch, another number of iterations per epoch. Applied and logged are
    changes of learning rates, weight decay and other hyperparameters, of the schedule, of the length of training, and,
    at the end of an epoch, of the number of images.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._advances = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adapt the checkpoint to the config before it is restored.

        Raises:
            ValueError: If the checkpoint cannot be adapted.
        """
        if not (isinstance(runner, Runner) and runner._resume and isinstance(runner.optim_wrapper, OptimWrapper)):
            return
        if 'epoch' not in (checkpoint.get('meta') or {}) or 'iter' not in checkpoint['meta']:
            raise UserError(
                '--resume: the file holds only weights, not the training state (meta.epoch, meta.iter): start from it '
                'with load_from'
            )
        checkpoint.setdefault('message_hub', dict(log_scalars={}, runtime_info={}, resumed_keys={}))
        now = training_facts(runner)
        then = _facts_of(checkpoint, now)
        changed = {name: (then[name], value) for name, value in now.items() if name in then and then[name] != value}
        _check_classes(changed.get('classes'))
        _settle_epochs(checkpoint['meta'], changed, now['iterations in an epoch'])
        if 'optimizer' in checkpoint:
            changed |= _settle_optimizer(runner.optim_wrapper, checkpoint['optimizer'])
        self._advances = any(name in changed for name in SCHEDULE) and isinstance(runner.param_schedulers, list)
        if self._advances:
            checkpoint.pop('param_schedulers', None)
        if 'optimizer' in checkpoint and (self._advances or 'learning rate' in changed):
            _take_rates(runner.optim_wrapper, checkpoint['optimizer'])
        _log_changes(runner, changed)

    def before_train(self, runner: Runner) -> None:
        """Advance a changed schedule to the current iteration, and store the training facts for later checkpoints."""
        if not isinstance(runner, Runner) or not isinstance(runner.optim_wrapper, OptimWrapper):
            return
        if self._advances:
            length = len(runner.train_loop.dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else 0
            epochs, more = divmod(runner.iter, length) if length else (0, runner.iter)
            advance_schedulers(runner.param_schedulers, epochs, length, more)
            self._advances = False
        runner.message_hub.update_info(FACTS, training_facts(runner))
        if runner._resume and runner.iter >= runner.max_iters:
            runner.logger.warning(
                f'the checkpoint was saved after all {runner.iter} iterations, so there is nothing to train: raise '
                'train_cfg.max_epochs or max_iters to continue'
            )


def _facts_of(checkpoint: dict, now: dict[str, Any]) -> dict[str, Any]:
    """Return the training facts that a checkpoint stores, or else those that can be inferred from it."""
    facts = checkpoint['message_hub'].get('runtime_info', {}).get(FACTS)
    if isinstance(facts, dict):
        return facts
    facts, meta, length = {}, checkpoint['meta'], now['iterations in an epoch']
    if length and meta['epoch']:
        name = os.path.basename(str(checkpoint['message_hub'].get('runtime_info', {}).get('last_ckpt')))
        at_end = name.startswith('epoch')  # other names may be from the middle of an epoch
        first, end = meta['epoch'] * length, (meta['epoch'] + (0 if at_end else 1)) * length
        if not first <= meta['iter'] <= end:
            facts['iterations in an epoch'] = meta['iter'] / (meta['epoch'] + (0 if at_end else 0.5))
    groups = (checkpoint.get('optimizer') or {}).get('param_groups') or []
    if groups and all(isinstance(group, dict) and 'initial_lr' in group for group in groups):
        facts['learning rate'] = [group['initial_lr'] for group in groups]
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if classes is not None and now['classes'] is not None:
        facts['classes'] = json.loads(json.dumps(classes, default=str))
    return facts


def _check_classes(change: tuple[Any, Any] | None) -> None:
    before, now = change or ((), ())
    if before != now and isinstance(before, list) and isinstance(now, list) and sorted(before) == sorted(now):
        raise UserError(
            f'the checkpoint was trained with the classes {before}, but the config has {now}: the same labels '
            'would mean other classes. Restore the old order in metainfo.classes'
        )


def _settle_epochs(meta: dict, changed: dict[str, tuple], length: int | None) -> None:
    """Convert the iteration count to the new length of an epoch, if it has changed."""
    before = changed.get('iterations in an epoch', (None,))[0]
    if not length or not isinstance(before, (int, float)) or before <= 0:
        return
    epochs, rest = divmod(meta['iter'], before)
    if rest or epochs not in (meta['epoch'], meta['epoch'] + 1):  # + 1 if saved by iteration
        raise UserError(
            f'the number of images or the batch size has changed, from {before:g} to {length} iterations per '
            f'epoch, and the checkpoint is from the middle of epoch {meta["epoch"] + 1}: resume from one '
            'saved at the end of an epoch, or start from its weights with load_from'
        )
    meta.update(epoch=int(epochs), iter=int(epochs) * length)


def _settle_optimizer(wrapper: OptimWrapper, state: dict) -> dict[str, tuple]:
    """Check the moments against the parameters, and set the config's hyperparameters in the checkpoint's groups.

    Raises:
        ValueError: If groups, numbers of parameters or shapes differ.
    """
    ours, theirs = wrapper.optimizer.param_groups, state.get('param_groups') or []
    shaped = all(isinstance(group, dict) and isinstance(group.get('params'), list) for group in theirs)
    if not shaped or [len(group['params']) for group in ours] != [len(group['params']) for group in theirs]:
        raise UserError(
            f"the {len(theirs)} parameter groups of the checkpoint's optimizer do not match the {len(ours)} of this "
            'config: keep optim_wrapper.paramwise_cfg and frozen_stages as they were, or start from the weights '
            'with load_from'
        )
    _check_moments(ours, theirs, state.get('state') or {})
    changed: dict[str, tuple] = {}
    for group, old in zip(ours, theirs):
        for name, value in group.items():
            before = old.get(name)
            if name not in SKIPPED and not _same(before, value):
                changed.setdefault(name.replace('_', ' '), (before, value))
                old[name] = value
        if not _same(old.get('initial_lr', old.get('lr')), group.get('initial_lr', group['lr'])):
            changed.setdefault(
                'learning rate',
                (
                    [one.get('initial_lr', one.get('lr')) for one in theirs],
                    [one.get('initial_lr', one['lr']) for one in ours],
                ),
            )
    return changed


def _take_rates(wrapper: OptimWrapper, state: dict) -> None:
    """Set the initial learning rates of a new run in the checkpoint's groups, for schedules that start again."""
    base, old_base = getattr(wrapper, 'base_param_settings', None), state.get('base_param_settings')
    pairs = [*zip(wrapper.optimizer.param_groups, state['param_groups'])]
    if base and isinstance(old_base, dict):
        pairs.append((base, old_base))
    for group, old in pairs:
        old.update({name: group[name] for name in ('lr', 'initial_lr') if name in group})


def _check_moments(ours: list[dict], theirs: list[dict], state: dict) -> None:
    """Reject moments whose shape differs from their parameter's, since fused optimizers would write out of bounds."""
    for group, old in zip(ours, theirs):
        for parameter, index in zip(group['params'], old['params']):
            entry = state.get(index) or {}
            for name, value in entry.items() if isinstance(entry, dict) else [('state', entry)]:
                is_tensor = isinstance(value, torch.Tensor)
                if name != 'step' and is_tensor:
                    fits = hasattr(parameter, 'to_local') or value.shape == parameter.shape  # or sharded
                else:
                    fits = isinstance(value, (int, float, type(None))) or is_tensor and value.numel() == 1
                if not fits:
                    raise UserError(
                        f"the checkpoint's optimizer has {name} of shape {tuple(getattr(value, 'shape', ()))} "
                        f'for a parameter of shape {tuple(parameter.shape)}: the checkpoint is of another model, or '
                        'was edited. Start from its weights with load_from'
                    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
    return type(one) is type(other) and str(one) == str(other)


def _log_changes(runner: Runner, changed: dict[str, tuple]) -> None:
    """Log the changes that the resumed run applies."""
    rows = [f'  {name}: {_describe(before)} -> {_describe(now)}' for name, (before, now) in changed.items()]
    if rows:
        runner.logger.info('changed since the checkpoint, and applied:\n' + '\n'.join(rows))


def _describe(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, (int, float)) for one in value):
        low, high = min(value), max(value)
        return f'{low:g}' if low == high else f'{low:g} to {high:g}'
    text = str(value)
    return text if len(text) <= 200 else f'{text[:200]}...'
