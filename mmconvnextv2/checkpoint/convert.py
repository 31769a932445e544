"""Converting checkpoint files between weight layouts, told step by step and checked against the foreign libraries.

Names and shapes are the business of ``mmconvnextv2.checkpoint``; here are files, the report of a conversion, and the
comparison of the outputs of source and target.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..utils.atomic import replacing
from ..utils.errors import ExistingFileError, FileError, MissingFileError, UserError
from . import (
    LAYOUTS,
    classifier_from_canonical,
    classifier_to_canonical,
    detect_layout,
    extract_state_dict,
    from_canonical,
    pretraining_from_canonical,
    pretraining_to_canonical,
    read_arch,
    to_canonical,
)
from .conversion import ANCHOR
from .cross_check import run
from .load import load_file

LAYOUT_NAMES = ('canonical', *LAYOUTS)
WRAPPERS = {'canonical': 'state_dict', 'official-dense': 'model', 'official-sparse': 'model'}
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
TOLERANCE = 1e-5  # of the largest value


def convert_file(
    source: str,
    target: str,
    layout: str,
    force: bool = False,
    pretraining: bool = False,
    weights: str = 'default',
    classifier: bool = False,
) -> str:
    """Convert a checkpoint of any known layout and write it, whole or not at all.

    Args:
        source (str): Path or URL.
        target (str): The file to write; ``.safetensors`` is written as such, ``.pth``, ``.pt`` and ``.bin`` by
            ``torch.save``.
        layout (str): One of ``LAYOUT_NAMES``. ``'timm'`` becomes ``'timm-conv'`` for sizes whose linear layers are
            convolutions in timm, ``'huggingface'`` ``'huggingface-backbone'`` for weights with a detector's output
            norms.
        force (bool): Overwrite the target. Defaults to False.
        pretraining (bool): Convert a whole FCMAE model with its decoder, between canonical and official-sparse, in
            place of the backbone alone. Defaults to False.
        weights (str): ``'ema'`` for the moving average in the file, ``'raw'`` for the trained weights beside it; see
            :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.
        classifier (bool): Convert a whole classifier with its head, in place of the backbone alone. Defaults to False.

    Returns:
        str: What was kept, renamed, reshaped and dropped.

    Raises:
        ValueError: If the source cannot be read or converted, or the target has another suffix.
        FileExistsError: If the target exists and ``force`` is not set.
        FileNotFoundError: If the source or the folder of the target does not exist.
    """
    check_target(target, force)
    found = extract_state_dict(load_file(source), weights)
    source_layout = detect_layout(found)
    if pretraining:
        convert = _pretraining_converter(source_layout, layout)
    else:
        layout = layout_variant(layout, to_canonical(found))
        convert = classifier_converter(layout) if classifier else backbone_converter(layout)
    converted = {name: compact(value) for name, value in convert(found).items()}
    write_atomically({WRAPPERS[layout]: converted} if layout in WRAPPERS else converted, converted, target)
    return '\n'.join([f'{source} ({source_layout}) -> {target} ({layout})', *_tell(found, convert)])


def convert_training_file(
    source: str,
    target: str,
    layout: str,
    config: str,
    options: dict[str, Any] | None = None,
    epoch_length: int | None = None,
    force: bool = False,
) -> str:
    """Convert a whole pretraining checkpoint, AdamW's moments and the epoch included.

    Args:
        source (str): Path or URL.
        target (str): The file to write, by ``torch.save``.
        layout (str): ``'canonical'`` from the official script's file, or ``'official-sparse'`` from one of mmengine.
        config (str): The FCMAE config that trained, or will go on.
        options (dict, optional): Overrides of the config. Defaults to None.
        epoch_length (int, optional): Iterations an epoch of the config that will go on. Defaults to the official run's.
        force (bool): Overwrite the target. Defaults to False.

    Raises:
        ValueError: If the source cannot be read or converted.
        FileExistsError: If the target exists and ``force`` is not set.
        FileNotFoundError: If the source or the folder of the target does not exist.
    """
    from .training_state import convert_training  # needs mmpretrain

    check_target(target, force, SUFFIXES[1:])
    content = load_file(source)
    source_layout = detect_layout(extract_state_dict(content, 'raw'))
    if {source_layout, layout} != {'canonical', 'official-sparse'}:
        raise UserError(
            f'training checkpoints go between canonical and official-sparse, not from {source_layout} to {layout}'
        )
    converted, report = convert_training(content, layout == 'canonical', config, options, epoch_length)
    write_atomically(converted, {}, target)
    return f'{source} ({source_layout}) -> {target} ({layout})\n{report}'


def check_target(target: str, force: bool, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Refuse a target that exists, whose folder does not, or whose suffix says nothing about its kind."""
    if not target.endswith(suffixes):
        raise UserError(f'{target} must end in {", ".join(suffixes)}')
    if os.path.exists(target) and not force:
        raise ExistingFileError(f'{target} exists: choose another name, or overwrite it with --force')
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise MissingFileError(f'the folder of {target} does not exist: make it, or choose another')


def _pretraining_converter(source_layout: str, layout: str) -> Callable[[dict], dict]:
    if (source_layout, layout) == ('official-sparse', 'canonical'):
        return pretraining_to_canonical
    if (source_layout, layout) == ('canonical', 'official-sparse'):
        return pretraining_from_canonical
    raise UserError(
        f'--pretraining converts between canonical and official-sparse, not from {source_layout} to {layout}'
    )


def classifier_converter(layout: str) -> Callable[[dict], dict]:
    """Return a function from a classifier of any layout to one of this one."""
    return lambda weights: classifier_from_canonical(classifier_to_canonical(weights), layout)


def backbone_converter(layout: str) -> Callable[[dict], dict]:
    """Return a function from any layout to this one, which leaves output norms out where it has no place for them."""
    places = {rule.canonical for rule in LAYOUTS.get(layout, ())}

    def convert(weights: dict) -> dict:
        backbone = {
            name: value
            for name, value in to_canonical(weights).items()
            if layout == 'canonical' or not name.startswith('norm') or name in places
        }
        return from_canonical(backbone, layout)

    return convert


def layout_variant(layout: str, weights: dict[str, Tensor]) -> str:
    """Return the layout's variant for these weights: timm's atto to nano, narrower than 96 channels, hold their linears
    as 1x1 convolutions; Hugging Face's classifiers have one output norm, its backbones one per map."""
    if layout == 'timm' and read_arch(weights)[1][0] < 96:
        return 'timm-conv'
    if layout == 'huggingface' and any(f'norm{stage}.weight' in weights for stage in range(3)):
        return 'huggingface-backbone'
    return layout


def write_atomically(content: dict, weights: dict[str, Tensor], target: str) -> None:
    """Write a file whole or not at all: the weights alone as safetensors, or the content by ``torch.save``.

    Raises:
        OSError: If it cannot be written; an older target is as it was.
    """
    try:
        with replacing(target) as partial:
            if target.endswith('.safetensors'):
                from safetensors.torch import save_file

                save_file(weights, partial, metadata=dict(format='pt'))
            else:
                torch.save(content, partial)
    except Exception as error:  # torch and safetensors have their own errors for a full disk
        raise FileError(f'{target} cannot be written ({error}): is the disk full?') from error


def compact(value: Tensor) -> Tensor:
    """Return a contiguous tensor that owns its memory, and no more than it needs."""
    value = value.detach().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _tell(found: dict[str, Tensor], convert: Callable[[dict], dict]) -> list[str]:
    """Follow every weight through a conversion by sending its number in its place."""
    names = list(found)
    numbers = {name: torch.tensor(number).expand(found[name].shape) for number, name in enumerate(names)}
    after = {names[int(value.flatten()[0])]: (name, value.shape) for name, value in convert(numbers).items()}
    lines = {'kept': [], 'renamed': [], 'reshaped': [], 'dropped': [name for name in names if name not in after]}
    for name, (new, shape) in after.items():
        arrow = name if name == new else f'{name} -> {new}'
        if shape != found[name].shape:
            lines['reshaped'].append(f'{arrow}, {tuple(found[name].shape)} to {tuple(shape)}')
        else:
            lines['kept' if name == new else 'renamed'].append(arrow)
    return [
        f'{len(what)} {kind}' + ''.join(f'\n    {line}' for line in what if kind != 'kept')
        for kind, what in lines.items()
    ]


def check_conversion(source: str, target: str, weights: str = 'default') -> str:
    """Compare a converted file with its source: bits after converting both to canonical, then the outputs of both on
    random images, each computed by the library that its layout comes from.

    Args:
        source (str): Path or URL.
        target (str): The file that was written from it.
        weights (str): As in :func:`convert_file`. Defaults to ``'default'``.

    Returns:
        str: The largest difference of outputs, and which libraries computed them.

    Raises:
        ValueError: If a weight differs, or outputs do by more than 1e-5 of the largest value.
    """
    before, after = extract_state_dict(load_file(source), weights), extract_state_dict(load_file(target))
    expected, back = to_canonical(before), to_canonical(after)
    lost = [name for name in expected if name not in back and not name.startswith('norm')]
    lost += [name for name in back if name not in expected or not torch.equal(back[name], expected[name])]
    if lost:
        raise UserError(
            f'{target} does not convert back to {source}: {len(lost)} weights differ, {", ".join(lost[:10])}'
        )
    images = torch.randn(2, expected[ANCHOR].shape[1], 64, 96, generator=torch.Generator().manual_seed(0))
    theirs, ours = (run(backbone_converter(detect_layout(file))(file), images) for file in (before, after))
    difference = max(_difference(one, other) for one, other in zip(theirs[1:], ours[1:]) if None not in (one, other))
    libraries = f'{detect_layout(before)} ({theirs.library}) and {detect_layout(after)} ({ours.library})'
    if difference > TOLERANCE:
        raise UserError(f'{target}: the outputs of {libraries} differ by {difference:.1e} of the largest value')
    return (
        f'{target} converts back to the same bits ({len(back)} weights); the outputs of {libraries} differ by at '
        f'most {difference:.1e} of the largest value'
    )


def _difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()
