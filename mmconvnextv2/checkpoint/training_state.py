"""Convert whole training checkpoints, so an FCMAE run of the official script can resume here and one of ours there.

Weights, decoder, AdamW's moments and the epoch are carried over. Official files hold no schedule; it follows from the
config, advanced to the epoch of the checkpoint. mmengine resumes weights, optimizer and schedule from one file.
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import Tensor

from ..utils.config import read_config
from ..utils.errors import UserError
from . import pretraining_from_canonical, pretraining_to_canonical
from .conversion import list_problems, read_layout, write_layout
from .layouts import PRETRAINING
from .optimizer_state import (
    convert_moments,
    read_moments,
    read_official_training,
    write_moments,
    write_official_training,
)


class Recipe(NamedTuple):
    """Settings of an FCMAE run from its config: optimizer, parameter names and shapes, and schedule."""

    optim_wrapper: OptimWrapper
    groups: list[list[str]]
    shapes: dict[str, tuple]
    schedule: list[dict]
    accumulative_counts: int


def advance_schedulers(schedulers: Sequence, num_epochs: int, epoch_length: int, more: int = 0) -> None:
    """Step schedulers as a run does that trains ``num_epochs`` epochs, and ``more`` iterations of the next one."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns if a scheduler steps before its optimizer
        for epoch in range(num_epochs + 1):
            last = epoch == num_epochs
            for by_epoch, times in ((False, more if last else epoch_length), (True, 0 if last else 1)):
                due = [scheduler for scheduler in schedulers if scheduler.by_epoch == by_epoch]
                for _ in range(times if due else 0):
                    for scheduler in due:
                        scheduler.step()


def read_recipe(config: str, options: dict[str, Any] | None = None) -> Recipe:
    """Build an FCMAE config's model on the meta device, and its optimizer.

    Args:
        config (str): Config of the run that trained, or that will resume.
        options (dict, optional): Overrides, as ``--cfg-options``. Defaults to None.
    """
    cfg = read_config(config)
    cfg.merge_from_dict(options or {})
    optim_wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}  # precision is not part of the state
    optim_wrapper = {key: value for key, value in optim_wrapper.items() if key not in ('loss_scale', 'dtype')}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        optim_wrapper = build_optim_wrapper(model, optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group['params']] for group in optim_wrapper.optimizer.param_groups]
    schedule = cfg.get('param_scheduler') or []
    return Recipe(
        optim_wrapper,
        groups,
        {name: value.shape for name, value in model.state_dict().items()},
        _with_ends(schedule if isinstance(schedule, (list, tuple)) else [schedule], cfg.train_cfg),
        cfg.optim_wrapper.get('accumulative_counts', 1),
    )


def _with_ends(schedule: Sequence[dict], train_cfg: dict) -> list[dict]:
    """Set the end of a schedule without one to the end of training, as mmengine's runner does."""
    ends = {True: train_cfg.get('max_epochs'), False: train_cfg.get('max_iters')}
    ends = {by_epoch: end for by_epoch, end in ends.items() if end is not None}
    return [
        {**({'end': ends[part.get('by_epoch', True)]} if part.get('by_epoch', True) in ends else {}), **part}
        for part in schedule
    ]


def training_to_canonical(content: dict, recipe: Recipe, epoch_length: int | None = None) -> dict:
    """Return a checkpoint that mmengine resumes, from the content of an official training checkpoint.

    Args:
        content (dict): ``model``, ``optimizer`` and ``epoch``.
        recipe (Recipe): Settings of the run that will resume.
        epoch_length (int, optional): Iterations per epoch of that run. Defaults to those of the official run.

    Raises:
        ValueError: If the file and the config disagree.
    """
    weights, moments, num_epochs = read_official_training(content)
    weights = pretraining_to_canonical(weights)
    _check_shapes(weights, recipe)
    _check_hyperparameters(content['optimizer']['param_groups'][0], recipe)
    moments = convert_moments(moments, lambda state: read_layout(state, PRETRAINING, 'pretraining').weights)
    epoch_length = epoch_length or _epoch_length(moments, num_epochs) * recipe.accumulative_counts
    wrapper = deepcopy(recipe.optim_wrapper)
    schedulers = _run_schedule(recipe.schedule, wrapper, num_epochs, epoch_length)
    optimizer = wrapper.state_dict()
    optimizer['state'] = write_moments(_steps_as_tensors(moments), recipe.groups)
    return dict(
        meta=dict(epoch=num_epochs, iter=num_epochs * epoch_length),
        state_dict=weights,
        optimizer=optimizer,
        param_schedulers=schedulers,
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
    )


def training_from_canonical(content: dict, recipe: Recipe) -> dict:
    """Return the content of a checkpoint that the official script resumes, from the content of one of ours.

    Args:
        content (dict): Content of a checkpoint that mmengine saved at the end of an epoch.
        recipe (Recipe): Settings of the run that saved it.

    Raises:
        ValueError: If the file is of another model or was saved in the middle of an epoch.
    """
    lacks = [key for key in ('meta', 'state_dict', 'optimizer') if key not in content]
    if lacks:
        raise UserError(f'a training checkpoint of mmengine holds meta, state_dict and optimizer; {lacks} missing')
    num_epochs, iterations = content['meta']['epoch'], content['meta']['iter']
    if not num_epochs or iterations % num_epochs:
        raise UserError(
            f'this checkpoint was saved after {iterations} iterations, in epoch {num_epochs + 1}: the '
            'official script resumes whole epochs only, convert one saved at the end of an epoch'
        )
    _check_shapes(content['state_dict'], recipe)
    moments = read_moments(content['optimizer'], recipe.groups, content['state_dict'])
    moments = convert_moments(moments, lambda state: write_layout(state, PRETRAINING, 'pretraining').weights)
    group = {**content['optimizer']['param_groups'][0], 'weight_decay': recipe.optim_wrapper.defaults['weight_decay']}
    return write_official_training(pretraining_from_canonical(content['state_dict']), moments, num_epochs, group)


def describe_weight_decay(recipe: Recipe) -> str:
    """Report whether the config decays GRN and the mask token, as the official script does."""
    decays = {
        name: group['weight_decay']
        for group, names in zip(recipe.optim_wrapper.param_groups, recipe.groups)
        for name in names
    }
    differs = [name for name, decay in decays.items() if not decay and ('.grn.' in name or 'mask_token' in name)]
    if not differs:
        return 'GRN and the mask token are decayed, as in the official script'
    return (
        f'{len(differs)} parameters (GRN, mask token) are decayed by the official script and not by this config; '
        'to match it, add to --cfg-options, here and in training: '
        'optim_wrapper.paramwise_cfg.custom_keys.grn.decay_mult=1 '
        'optim_wrapper.paramwise_cfg.custom_keys.mask_token.decay_mult=1'
    )


def _run_schedule(schedule: list[dict], wrapper: OptimWrapper, num_epochs: int, epoch_length: int) -> list[dict]:
    """Advance the optimizer's learning rates by ``num_epochs`` epochs; return the schedulers' states."""
    schedulers = [
        PARAM_SCHEDULERS.build(part, default_args=dict(optimizer=wrapper, epoch_length=epoch_length))
        for part in schedule
    ]
    advance_schedulers(schedulers, num_epochs, epoch_length)
    return [scheduler.state_dict() for scheduler in schedulers]


def _check_shapes(weights: dict[str, Tensor], recipe: Recipe) -> None:
    problems = list_problems(weights, recipe.shapes)
    if problems:
        raise UserError(f'the checkpoint does not fit the config: {problems}. Check model.backbone and model.neck')


def _check_hyperparameters(group: dict, recipe: Recipe) -> None:
    """Raise ``ValueError`` if the config's AdamW would interpret the moments differently."""
    ours = recipe.optim_wrapper.defaults
    for key in ('betas', 'eps'):
        if key in group and not torch.allclose(torch.tensor(group[key]), torch.tensor(ours[key]), rtol=1e-6, atol=0.0):
            raise UserError(
                f'the run has {key}={group[key]}, the config {ours[key]}: set '
                f'optim_wrapper.optimizer.{key} to the former'
            )


def _epoch_length(moments: dict, num_epochs: int) -> int:
    steps = {int(state['step']) for state in moments.values()}
    if len(steps) != 1 or min(steps) % num_epochs:
        raise UserError(
            f'the optimizer made {sorted(steps)} steps in {num_epochs} epochs: give the iterations '
            'per epoch of your config with --epoch-length'
        )
    return steps.pop() // num_epochs


def _steps_as_tensors(moments: dict) -> dict:
    """Return moments with step counts as tensors, as in torch >= 1.12."""
    return {name: {**state, 'step': torch.tensor(float(state['step']))} for name, state in moments.items()}


def convert_training(
    content: dict,
    to_canonical: bool,
    config: str,
    options: dict[str, Any] | None = None,
    epoch_length: int | None = None,
) -> tuple[dict, str]:
    """Convert the content of a training checkpoint file, and report differences in weight decay.

    Args:
        content (dict): Content of the file.
        to_canonical (bool): Convert from the official script's format to ours; False for the other direction.
        config (str): Config of the run that trained, or that will resume.
        options (dict, optional): Overrides of the config. Defaults to None.
        epoch_length (int, optional): See :func:`training_to_canonical`. Defaults to None.

    Returns:
        tuple[dict, str]: Content of the file to write, and the report.
    """
    recipe = read_recipe(config, options)
    if to_canonical:
        converted = training_to_canonical(content, recipe, epoch_length)
        state, place = converted['state_dict'], f'epoch {converted["meta"]["epoch"]}, iter {converted["meta"]["iter"]}'
    else:
        converted = training_from_canonical(content, recipe)
        state, place = converted['model'], f'epoch index {converted["epoch"]}'
    moments = len(converted['optimizer']['state'])
    return converted, f'{len(state)} weights, moments of {moments} parameters, {place}\n{describe_weight_decay(recipe)}'
