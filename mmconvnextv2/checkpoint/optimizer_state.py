"""Convert AdamW's state between the official pretraining script's order of parameters and ours.

An optimizer's state dict numbers the parameters, group by group, without their names. The official script has two
groups: first the parameters without weight decay (vectors and biases), then the rest, which includes GRN and the mask
token because there they are not vectors. Within a group, parameters follow construction order. Reading only needs the
order of the weights in the same file. Reshapes are permutations, so the moments are reshaped like the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..utils.errors import UserError
from .conversion import find_rule, preview, strip_prefixes
from .layouts import PRETRAINING

Moments = dict[str, dict[str, Any]]
HYPERPARAMETERS = ('lr', 'betas', 'eps', 'weight_decay', 'amsgrad')
OFFICIAL_MODULES = ('mask_token', 'encoder.downsample_layers', 'encoder.stages', 'proj', 'decoder', 'pred')


def sort_official(names: Sequence[str]) -> list[str]:
    """Sort parameter names of the official pretraining model in construction order."""

    def place(name: str) -> tuple[int, ...]:
        line, numbers = find_rule(name, PRETRAINING)
        module = next(index for index, start in enumerate(OFFICIAL_MODULES) if name.startswith(start))
        return module, int(numbers.get('s', numbers.get('d', 0))), int(numbers.get('b', 0)), line

    return sorted(names, key=place)


def official_groups(weights: dict[str, Tensor]) -> list[list[str]]:
    """Split official parameter names into those without and those with weight decay, each in the given order."""
    exempt = [name for name, value in weights.items() if value.ndim <= 1 or name.endswith('.bias')]
    return [exempt, [name for name in weights if name not in set(exempt)]]


def read_moments(optimizer: dict, groups: Sequence[Sequence[str]], weights: dict[str, Tensor]) -> Moments:
    """Return the state of each parameter by name.

    Args:
        optimizer (dict): State dict of a torch optimizer, with ``state`` and ``param_groups``.
        groups (Sequence[Sequence[str]]): Parameter names of each group.
        weights (dict): Tensors whose shapes the moments must have.

    Raises:
        ValueError: If groups or shapes disagree.
    """
    sizes = [len(group['params']) for group in optimizer['param_groups']]
    expected = [len(group) for group in groups]
    if sizes != expected:
        raise UserError(
            f'the optimizer state has groups of {sizes} parameters, expected {expected}: it is of another '
            'model, or splits its weight decay in another way'
        )
    numbers = [number for group in optimizer['param_groups'] for number in group['params']]
    named = dict(zip([name for group in groups for name in group], numbers))
    moments = {name: optimizer['state'][number] for name, number in named.items() if number in optimizer['state']}
    wrong = [
        f'{kind} of {name} {tuple(value.shape)} instead of {tuple(weights[name].shape)}'
        for name, state in moments.items()
        for kind, value in _tensors(state).items()
        if value.shape != weights[name].shape
    ]
    if wrong:
        raise UserError(
            f'{len(wrong)} tensors of the optimizer state have another shape than their weights: '
            f'{preview(wrong)}. The parameters are in another order'
        )
    return moments


def write_moments(moments: Moments, groups: Sequence[Sequence[str]]) -> dict[int, dict[str, Any]]:
    """Return an optimizer's ``state``, numbered through the groups; the inverse of :func:`read_moments`."""
    names = [name for group in groups for name in group]
    return {number: moments[name] for number, name in enumerate(names) if name in moments}


def convert_moments(moments: Moments, convert: Callable[[dict], dict]) -> Moments:
    """Rename parameters and reshape their moments, except step counts, as ``convert`` does with weights."""
    converted = {}
    for name, state in moments.items():
        reshaped = {kind: next(iter(convert({name: value}).items())) for kind, value in _tensors(state).items()}
        new_name = next((new for new, _ in reshaped.values()), None)
        if new_name is not None:
            converted[new_name] = {**state, **{kind: value for kind, (_, value) in reshaped.items()}}
    return converted


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {kind: value for kind, value in state.items() if isinstance(value, Tensor) and value.ndim}


def read_official_training(content: dict) -> tuple[dict[str, Tensor], Moments, int]:
    """Return the weights, the moments by official name, and the number of finished epochs of an official file.

    Raises:
        ValueError: If the file is not a complete training checkpoint.
    """
    lacks = [key for key in ('model', 'optimizer', 'epoch') if key not in content]
    if lacks:
        raise UserError(
            f'a training checkpoint of the official script holds model, optimizer and epoch; {lacks} '
            f'missing among {preview(list(map(str, content)))}'
        )
    weights = {strip_prefixes(key): value for key, value in content['model'].items()}
    moments = read_moments(content['optimizer'], official_groups(weights), weights)
    return weights, moments, content['epoch'] + 1


def write_official_training(weights: dict[str, Tensor], moments: Moments, num_epochs: int, group: dict) -> dict:
    """Return the file content that the official script saves after ``num_epochs`` epochs.

    Args:
        weights (dict[str, Tensor]): Weights by official name.
        moments (dict): Optimizer state by official name.
        num_epochs (int): Number of finished epochs.
        group (dict): A parameter group of the optimizer, for AdamW's hyperparameters.
    """
    weights = {name: weights[name] for name in sort_official(list(weights))}
    groups = official_groups(weights)
    hyperparameters = {key: group[key] for key in HYPERPARAMETERS if key in group}
    numbers = iter(range(len(weights)))
    param_groups = [
        {**hyperparameters, 'weight_decay': decay, 'params': [next(numbers) for _ in names]}
        for names, decay in zip(groups, (0.0, group['weight_decay']))
    ]
    moments = {name: {**state, 'step': int(state['step'])} for name, state in moments.items()}
    return dict(
        model=weights,
        epoch=num_epochs - 1,
        optimizer=dict(state=write_moments(moments, groups), param_groups=param_groups),
    )
