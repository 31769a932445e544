"""The plan of a training run: what it will do, in a few lines before it starts, and whether that can work."""

import sys
from typing import NamedTuple

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..datasets.fraction import fractions_in
from ..engine.model_state import unwrapped
from ..engine.runner import NamingRunner
from ..engine.schedule import run_length, settle_iterations, warmup_iterations
from ..mmcv_operators import serving_operators
from ..ops.dispatch import describe_kernels
from ..utils.errors import UserError

LEAST_LR = 1e-5  # for AdamW; a rate scaled below it by --auto-scale-lr does next to nothing in a short run
MOST_DISK = 20e9  # bytes of checkpoints
LONG_WARMUP = 1 / 3  # of the run


class Plan(NamedTuple):
    """What a run will do, and what cannot work in it.

    Attributes:
        lines (tuple): Lines of text.
        warnings (tuple): One line per doubt.
    """

    lines: tuple[str, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f'    {line}' for line in self.lines] + [f'    WARNING: {line}' for line in self.warnings]
        return '\n'.join(['plan', *lines])


def settle_length(runner: Runner) -> str | None:
    """Build the data loader of a run that is about to start, and settle its schedule for the length of an epoch.

    Returns:
        str, optional: What was changed; see :func:`~mmconvnextv2.engine.schedule.settle_iterations`.

    Raises:
        ValueError: If an epoch has no batch, of which MMEngine's schedules ask for a positive length.
    """
    loader = runner.train_loop.dataloader
    if not hasattr(loader.dataset, '__len__'):
        return None
    if not len(loader):
        raise UserError(
            f'train_dataloader: {len(loader.dataset)} images do not fill a batch of {_batch_size(loader)} in each '
            'process, and incomplete batches are dropped: set a smaller train_dataloader.batch_size'
        )
    if not runner.cfg.get('fit_schedule', True):
        return None
    return settle_iterations(runner.param_schedulers, len(loader), _max_iters(runner))


def make_plan(runner: Runner, notes: list[str]) -> Plan:
    """Describe a run that is about to start.

    Args:
        runner (Runner): A runner with a data loader and a settled schedule. Its optimizer is built, as training would.
        notes (list[str]): What was changed in the config.
    """
    cfg, loader = runner.cfg, runner.train_loop.dataloader
    if type(runner) is NamingRunner:  # others shard the model first
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    changed = [f'changed      {note}' for note in notes]
    if not hasattr(loader.dataset, '__len__'):
        return Plan(('data         of unknown length', *changed), ())
    per_epoch, images, world, size = len(loader), len(loader.dataset), get_world_size(), _batch_size(loader)
    unit, length = run_length(cfg)
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batch, warnings = size * world * accumulated, []
    epoch = _count(per_epoch, 'iteration')
    parts = f'batch {size}' + f' x {world} processes' * (world > 1) + f' x {accumulated}' * (accumulated > 1)
    given = ' and '.join(map(str, fractions_in(loader.dataset))) or f'{images:,} images'
    lines = [
        f'data         {given}, {parts} = {batch} images per step, {epoch} per epoch',
        f'length       {_length(unit, length, per_epoch)}, {_evaluations(runner, unit, length)}',
    ]
    lines += _rates(runner, batch, accumulated, per_epoch, warnings)
    lines.append(f'checkpoints  {_checkpoints(runner, unit, length, warnings)}')
    lines.append(f'device       {_device(runner)}')
    if images < batch:
        remedy = 'set train_dataloader.batch_size or optim_wrapper.accumulative_counts to fewer'
        warnings.append(f'{images} images are fewer than one step of {batch}: {remedy}')
    return Plan((*lines, *changed), tuple(warnings))


def _batch_size(loader: DataLoader) -> int:
    return loader.batch_size or loader.batch_sampler.batch_size  # MMDetection's samplers batch themselves


def _max_iters(runner: Runner) -> int:
    unit, length = run_length(runner.cfg)
    return length * len(runner.train_loop.dataloader) if unit == 'epochs' else length


def _count(number: int, noun: str) -> str:
    return f'{number:,} {noun}' + 's' * (number != 1)


def _length(unit: str, length: int, per_epoch: int) -> str:
    if unit == 'epochs':
        return f'{_count(length, "epoch")} = {_count(length * per_epoch, "iteration")}'
    return f'{_count(length, "iteration")} = {length / per_epoch:.1f} epochs'


def _evaluations(runner: Runner, unit: str, length: int) -> str:
    interval = runner.cfg.train_cfg.get('val_interval', 1 if unit == 'epochs' else 1000)
    if runner.cfg.get('val_cfg') is None:
        return 'no evaluation'
    every = unit[:-1] if interval == 1 else _count(interval, unit[:-1])
    return f'{_count(length // interval, "evaluation")}, one per {every}'


def _rates(runner: Runner, batch: int, accumulated: int, per_epoch: int, warnings: list[str]) -> list[str]:
    wrapper, max_iters = runner.optim_wrapper, _max_iters(runner)
    if not isinstance(wrapper, OptimWrapper):
        return []
    groups, scaling = wrapper.optimizer.param_groups, runner.cfg.get('auto_scale_lr') or {}
    factor = batch / accumulated / scaling['base_batch_size'] if scaling.get('enable') else 1.0
    rates = sorted(group['lr'] * factor for group in groups)
    warmup = warmup_iterations(runner.param_schedulers, per_epoch)
    text = f'peak {rates[-1]:.2g}' + f', {rates[0]:.2g} in the lowest group' * (rates[0] < rates[-1])
    base = scaling.get('base_batch_size')
    if factor != 1:
        text += f', scaled by {factor:.3g}'
    elif base and not 1 / 4 <= batch / base <= 4:
        warnings.append(
            f'lr is for batches of {base:g} images, this run takes {batch} per step: add --auto-scale-lr or set '
            'optim_wrapper.optimizer.lr'
        )
    if rates[-1] < LEAST_LR and factor < 1:
        warnings.append(
            f'--auto-scale-lr leaves a peak lr of {rates[-1]:.2g}: raise optim_wrapper.optimizer.lr or the batch'
        )
    if warmup >= LONG_WARMUP * max_iters:
        warnings.append(
            f'the warm-up takes {warmup:,} of {max_iters:,} iterations: train longer, or shorten it in param_scheduler'
        )
    share = f' ({warmup / max_iters:.0%} of the run)' if warmup else ''
    kinds = ', '.join(dict.fromkeys(_kind(one) for one in _after_warmup(runner.param_schedulers))) or 'constant'
    rising = f'warm-up {_count(warmup, "iteration")}{share}'
    return [f'lr           {text}, {type(wrapper.optimizer).__name__}, {rising}, then {kinds}']


def _after_warmup(param_scheduler) -> list[dict]:
    given = param_scheduler if isinstance(param_scheduler, (list, tuple)) else [param_scheduler]
    return [one for one in given if isinstance(one, dict) and one.get('type') not in ('LinearLR', 'ConstantLR', None)]


def _kind(scheduler: dict) -> str:
    name = scheduler['type'].removesuffix('LR').removesuffix('Annealing').lower()
    if 'milestones' in scheduler:
        unit = 'epochs' if scheduler.get('by_epoch', True) else 'iterations'
        return f'x {scheduler.get("gamma", 0.1):g} at {" and ".join(map(str, scheduler["milestones"]))} {unit}'
    return name


def _checkpoints(runner: Runner, unit: str, length: int, warnings: list[str]) -> str:
    hook = (runner.cfg.get('default_hooks') or {}).get('checkpoint') or {}
    interval, most = hook.get('interval', 1), hook.get('max_keep_ckpts', -1)
    written = max(1, length // interval) if interval > 0 else 0
    kept = min(written, most) if most and most > 0 else written
    files = kept + bool(hook.get('save_best'))
    best = ' and the best' if hook.get('save_best') else ''
    model = unwrapped(runner.model)
    if not isinstance(model, nn.Module):  # FlexibleRunner builds it later, in shards
        return f'{kept} kept of {written}{best}'
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    frozen = sum(one.numel() * one.element_size() for one in model.parameters() if not one.requires_grad)
    states = 2 if hook.get('save_optimizer', True) else 0  # AdamW's two moments
    size = trained * (1 + states) + frozen
    if files * size > MOST_DISK:
        warnings.append(
            f'checkpoints take {files * size / 1e9:.0f} GB: set default_hooks.checkpoint.max_keep_ckpts to fewer, '
            'or a longer default_hooks.checkpoint.interval'
        )
    return f'{kept} kept of {written}{best}, {size / 1e6:,.0f} MB each, {files * size / 1e9:.1f} GB'


def _device(runner: Runner) -> str:
    model = unwrapped(runner.model)
    if not isinstance(model, nn.Module):
        return f'{get_world_size()} processes with {type(runner.strategy).__name__}'
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    precision = {'BF16OptimWrapper': 'bfloat16', 'FP16OptimWrapper': 'float16', 'AmpOptimWrapper': 'autocast'}
    wrapper = type(runner.optim_wrapper).__name__
    return f'{name}, {precision.get(wrapper, "float32")}, {_implementations(model, device)}'


def _implementations(model: torch.nn.Module, device: torch.device) -> str:
    kernels = describe_kernels(device.type, getattr(getattr(model, 'backbone', None), 'kernels', None))
    operators = f', operators of mmcv: {serving_operators()}' if 'mmcv._ext' in sys.modules else ''
    return f'blocks: {kernels}{operators}'
