"""Convert checkpoint files between weight layouts, report each change, and check the result in the foreign libraries.

:mod:`.conversion` knows names and shapes. This module handles files: a source is read once, as a :class:`WeightFile`,
which is then converted and compared with the file that was written.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.atomic import replacing
from ..utils.errors import ExistingFileError, FileError, MissingFileError, UserError
from .conversion import (
    ANCHOR,
    ModelWeights,
    Renamed,
    canonical_classifier,
    classifier_from_canonical,
    detect_layout,
    read_arch,
    read_model,
    read_pretraining,
    without_foreign_norms,
    write_backbone,
    write_pretraining,
)
from .cross_check import relative_difference, run_in_library
from .layouts import LAYOUTS
from .load import load_file
from .state_dict import extract_state_dict

LAYOUT_NAMES = ('canonical', *LAYOUTS)
WRAPPERS = {
    'canonical': 'state_dict',
    'official-dense': 'model',
    'official-sparse': 'model',
    'mmearth': 'model',
    'mmearth-dense': 'model',
    'spark': 'module',
}
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
TOLERANCE = 1e-5  # as a fraction of the largest value


class WeightFile(NamedTuple):
    """A checkpoint file after a single reading.

    Args:
        path (str): Path or URL.
        state_dict (dict): State dict in the file.
        model (ModelWeights): Its layout, backbone and head.
    """

    path: str
    state_dict: dict[str, Tensor]
    model: ModelWeights


def read_weight_file(path: str, weights: str = 'default') -> WeightFile:
    """Read a checkpoint of any known layout.

    Args:
        path (str): Path or URL.
        weights (str): See :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.

    Raises:
        ValueError: If the file cannot be read, or does not hold a complete backbone.
        FileNotFoundError: If the file does not exist.
    """
    state_dict = extract_state_dict(load_file(path), weights)
    return WeightFile(path, state_dict, read_model(state_dict))


def convert_file(
    source: str,
    target: str,
    layout: str,
    force: bool = False,
    pretraining: bool = False,
    weights: str = 'default',
    classifier: bool = False,
) -> str:
    """Convert a checkpoint of any known layout, and write the target atomically.

    Args:
        source (str): Path or URL.
        target (str): File to write: ``.safetensors`` in that format, ``.pth``, ``.pt`` and ``.bin`` with
            ``torch.save``.
        layout (str): One of ``LAYOUT_NAMES``. ``'timm'`` becomes ``'timm-conv'`` for sizes whose linear layers are
            convolutions in timm, ``'huggingface'`` becomes ``'huggingface-backbone'`` for weights with a detector's
            output norms.
        force (bool): Overwrite the target. Defaults to False.
        pretraining (bool): Convert a whole FCMAE model with its decoder, between canonical and official-sparse,
            instead of the backbone only. Defaults to False.
        weights (str): ``'ema'`` for the moving average in the file, ``'raw'`` for the trained weights stored next to
            it; see :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.
        classifier (bool): Convert a whole classifier with its head, instead of the backbone only. Defaults to False.

    Returns:
        str: Report of what was kept, renamed, reshaped and dropped.

    Raises:
        ValueError: If the source cannot be read or converted, or the target has another suffix.
        FileExistsError: If the target exists and ``force`` is not set.
        FileNotFoundError: If the source or the folder of the target does not exist.
    """
    check_target(target, force)
    return write_converted(read_weight_file(source, weights), target, layout, pretraining, classifier)


def write_converted(
    source: WeightFile, target: str, layout: str, pretraining: bool = False, classifier: bool = False
) -> str:
    """Convert a file that has been read; see :func:`convert_file`."""
    model = source.model
    if pretraining:
        converted = _convert_pretraining(source, layout)
    else:
        layout = layout_variant(layout, model.backbone.weights)
        converted = _convert_classifier(model, layout) if classifier else _convert_backbone(model, layout)
    weights = {name: compact(value) for name, value in converted.weights.items()}
    write_atomically({WRAPPERS[layout]: weights} if layout in WRAPPERS else weights, weights, target)
    title = f'{source.path} ({model.layout}) -> {target} ({layout})'
    return '\n'.join([title, *_report(source.state_dict, converted)])


def _convert_pretraining(source: WeightFile, layout: str) -> Renamed:
    if (source.model.layout, layout) == ('official-sparse', 'canonical'):
        return read_pretraining(source.state_dict)
    if (source.model.layout, layout) == ('canonical', 'official-sparse'):
        return write_pretraining(source.state_dict)
    raise UserError(
        f'--pretraining converts between canonical and official-sparse, not from {source.model.layout} to {layout}'
    )


def _convert_backbone(model: ModelWeights, layout: str) -> Renamed:
    written = write_backbone(without_foreign_norms(model.backbone.weights, layout), layout)
    origins = {new: model.backbone.origins[name] for new, name in written.origins.items()}
    return Renamed(written.weights, origins, [])


def _convert_classifier(model: ModelWeights, layout: str) -> Renamed:
    canonical = canonical_classifier(model)
    written = classifier_from_canonical(canonical, layout)
    origins = [*(model.backbone.origins[name] for name in model.backbone.weights), *model.head.origins.values()]
    return Renamed(written, dict(zip(written, origins, strict=True)), [])


def convert_training_file(
    source: str,
    target: str,
    layout: str,
    config: str,
    options: dict[str, Any] | None = None,
    epoch_length: int | None = None,
    force: bool = False,
) -> str:
    """Convert a whole pretraining checkpoint, including AdamW's moments and the epoch.

    Args:
        source (str): Path or URL.
        target (str): File to write with ``torch.save``.
        layout (str): ``'canonical'`` for a source from the official script, ``'official-sparse'`` for one from
            mmengine.
        config (str): FCMAE config of the run that wrote the source, or of the run that will resume.
        options (dict, optional): Overrides of the config. Defaults to None.
        epoch_length (int, optional): Iterations per epoch of the run that will resume. Defaults to those of the
            official run.
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
    """Raise ``ValueError`` if a target has an unknown suffix, exists without ``force``, or has no folder."""
    if not target.endswith(suffixes):
        raise UserError(f'{target} must end in {", ".join(suffixes)}')
    if os.path.exists(target) and not force:
        raise ExistingFileError(f'{target} exists: choose another name, or overwrite it with --force')
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise MissingFileError(f'the folder of {target} does not exist: create it, or choose another')


def layout_variant(layout: str, weights: dict[str, Tensor]) -> str:
    """Return the variant of a layout that fits canonical weights.

    timm's atto to nano, narrower than 96 channels, hold their linear layers as 1x1 convolutions. Hugging Face's
    classifiers have one output norm, its backbones one per map.
    """
    if layout == 'timm' and read_arch(weights)[1][0] < 96:
        return 'timm-conv'
    if layout == 'huggingface' and any(f'norm{stage}.weight' in weights for stage in range(3)):
        return 'huggingface-backbone'
    return layout


def write_atomically(content: dict, weights: dict[str, Tensor], target: str) -> None:
    """Write a complete file or none: ``weights`` as safetensors, or else ``content`` with ``torch.save``.

    Raises:
        OSError: If the file cannot be written; an existing target is left unchanged.
    """
    try:
        with replacing(target) as partial:
            if target.endswith('.safetensors'):
                from safetensors.torch import save_file

                save_file(weights, partial, metadata=dict(format='pt'))
            else:
                torch.save(content, partial)
    except Exception as error:  # torch and safetensors raise errors of their own for a full disk
        raise FileError(f'{target} cannot be written ({error}): is the disk full?') from error


def compact(value: Tensor) -> Tensor:
    """Return a contiguous tensor whose storage holds nothing else."""
    value = value.detach().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _report(source: dict[str, Tensor], converted: Renamed) -> list[str]:
    """List the weights of each kind: kept, renamed, reshaped, dropped."""
    used = set(converted.origins.values())
    lines: dict[str, list[str]] = {
        'kept': [],
        'renamed': [],
        'reshaped': [],
        'dropped': [name for name in source if name not in used],
    }
    for new, value in converted.weights.items():
        name = converted.origins[new]
        arrow = name if name == new else f'{name} -> {new}'
        if value.shape != source[name].shape:
            lines['reshaped'].append(f'{arrow}, {tuple(source[name].shape)} to {tuple(value.shape)}')
        else:
            lines['kept' if name == new else 'renamed'].append(arrow)
    return [
        f'{len(what)} {kind}' + ''.join(f'\n    {line}' for line in what if kind != 'kept')
        for kind, what in lines.items()
    ]


def check_conversion(source: str, target: str, weights: str = 'default') -> str:
    """Compare a converted file with its source: the bits after converting both to canonical, then the outputs of both
    on random images, each computed by the library that its layout comes from.

    Args:
        source (str): Path or URL.
        target (str): File that was written from the source.
        weights (str): As in :func:`convert_file`. Defaults to ``'default'``.

    Returns:
        str: The largest difference of the outputs, and the libraries that computed them.

    Raises:
        ValueError: If a weight differs, or outputs differ by more than 1e-5 of the largest value.
    """
    return check_written(read_weight_file(source, weights), target)


def check_written(source: WeightFile, target: str) -> str:
    """Compare a converted file with a source that has been read; see :func:`check_conversion`."""
    before = source.model
    after = read_weight_file(target).model
    expected, found = before.backbone.weights, after.backbone.weights
    lost = [name for name in expected if name not in found and not name.startswith('norm')]
    lost += [name for name in found if name not in expected or not torch.equal(found[name], expected[name])]
    if lost:
        raise UserError(
            f'{target} does not convert back to {source.path}: {len(lost)} weights differ, {", ".join(lost[:10])}'
        )
    images = torch.randn(2, expected[ANCHOR].shape[1], 64, 96, generator=torch.Generator().manual_seed(0))
    theirs = run_in_library(before.layout, expected, images)
    ours = run_in_library(after.layout, found, images)
    difference = relative_difference(theirs.last_map, ours.last_map)
    if theirs.pooled is not None and ours.pooled is not None:
        difference = max(difference, relative_difference(theirs.pooled, ours.pooled))
    libraries = f'{before.layout} ({theirs.library}) and {after.layout} ({ours.library})'
    if difference > TOLERANCE:
        raise UserError(f'{target}: the outputs of {libraries} differ by {difference:.1e} of the largest value')
    return (
        f'{target} converts back to the same bits ({len(found)} weights); the outputs of {libraries} differ by at '
        f'most {difference:.1e} of the largest value'
    )
