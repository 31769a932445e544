"""Conversions between foreign layouts of ConvNeXt weights and the canonical one, dict to dict, without silent loss.

The official loader prints mismatches and continues, which loses GRN and with it 84.6 -> 78.8 top-1 (arXiv 2301.00808,
Table 2). Here a missing, unexpected or wrongly shaped weight raises.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from statistics import mode
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.convnext_v2 import ConvNeXtV2
from ..utils.errors import UserError
from ..utils.moved import moved_names, renamed_argument
from .layouts import CLASSIFIERS, CONV_1X1, LAYOUTS, PRETRAINING, SIGNATURES, SPELLINGS, VARIANTS, Rule

CANONICAL_KEY = re.compile(r'(downsample_layers|stages)\.\d+\.|norm[0-3]\.')
OTHER_NORM = re.compile(r'stages\.\d\.\d+\.grn\.(weight|bias|(mlp|batch_norm|spatial)\..+)')  # the paper's ablations
LAYER_SCALE = re.compile(r'stages\.\d\.\d+\.gamma')  # ConvNeXt V1
ANCHOR = 'downsample_layers.0.0.weight'  # the stem's kernel, which every backbone has exactly once
CONV_STEM = ('downsample_layers.0.3.', 'downsample_layers.0.4.')  # the layers of a ConvStem that a Stem lacks
MAX_STRIDE = 32  # of a ConvStem in a file
POINTWISE = ('pointwise_conv1.weight', 'pointwise_conv2.weight')
PLACEHOLDERS = (('s', '[0-3]'), ('b', r'\d+'), ('d', '[1-3]'), ('any', '.+'))
MAX_CHANNELS = 1 << 20  # shapes beyond this overflow torch's size arithmetic; such a file is reported as wrong shapes


class Backbone(NamedTuple):
    """The result of :func:`read_backbone`: layout, canonical weights, and the keys that were dropped on purpose."""

    layout: str
    weights: dict[str, Tensor]
    dropped: list[str]


class Renamed(NamedTuple):
    """Weights under new names.

    Args:
        weights (dict[str, Tensor]): Tensors by new name.
        origins (dict[str, str]): Old name of each new name.
        dropped (list[str]): Old names that were dropped on purpose.
    """

    weights: dict[str, Tensor]
    origins: dict[str, str]
    dropped: list[str]


class ModelWeights(NamedTuple):
    """A model's weights after a single reading of its state dict.

    Args:
        layout (str): ``'canonical'`` or a key of ``LAYOUTS``.
        backbone (Renamed): Complete backbone under canonical names; its origins are the keys in the file.
        head (Renamed): ``head.fc.weight`` and ``head.fc.bias`` as far as the file has them.
    """

    layout: str
    backbone: Renamed
    head: Renamed

    def as_backbone(self) -> Backbone:
        """Return the backbone as :func:`read_backbone` does."""
        return Backbone(self.layout, self.backbone.weights, self.backbone.dropped)

    @property
    def has_head(self) -> bool:
        """Whether the file holds a whole classifier."""
        return len(self.head.weights) == 2


def detect_layout(state_dict: dict) -> str:
    """Return the layout of a state dict.

    Returns:
        str: ``'canonical'`` or a key of ``LAYOUTS``.

    Raises:
        ValueError: If the keys match no known layout, or several.
    """
    names = {strip_prefixes(key): value for key, value in state_dict.items()}
    found = {
        layout: next((name for name in names if signature.fullmatch(name)), None)
        for layout, signature in SIGNATURES.items()
    }
    found = {layout: name for layout, name in found.items() if name is not None}
    if not found:
        raise UserError(
            f'these weights match no known ConvNeXt layout ({", ".join(SIGNATURES)}): the file holds '
            f'{len(names)} keys, {preview(list(state_dict))}'
        )
    if len(found) > 1:
        seen = ', '.join(f'{name} ({layout})' for layout, name in found.items())
        raise UserError(f'these weights are of {len(found)} layouts at once: {seen}. Keep the keys of one model')
    return _variant(next(iter(found)), names)


def _variant(layout: str, state_dict: dict[str, Tensor]) -> str:
    if layout == 'timm' and any(
        key.endswith('mlp.fc1.weight') and getattr(value, 'ndim', 0) == 4 for key, value in state_dict.items()
    ):
        return 'timm-conv'
    variants = VARIANTS.get(layout, {})
    return next((name for name, own in variants.items() if any(own.fullmatch(key) for key in state_dict)), layout)


def to_canonical(state_dict: dict) -> dict[str, Tensor]:
    """Return a backbone's weights under canonical names, without prefix.

    Args:
        state_dict (dict): Weights in any known layout; canonical ones may be part of a whole model, as ``backbone.*``.

    Returns:
        dict[str, Tensor]: Backbone weights; heads and decoders are dropped.

    Raises:
        ValueError: If the layout is unknown, a key is not in its table, or a weight of the backbone (depths and
            channels are read from the file) is missing or has a wrong shape.
    """
    return read_backbone(state_dict).weights


def read_backbone(state_dict: dict) -> Backbone:
    """Return the weights of :func:`to_canonical` together with the layout and the dropped keys."""
    layout = detect_layout(state_dict)
    weights, _, dropped = read_backbone_as(layout, state_dict)
    return Backbone(layout, weights, dropped)


def read_model(state_dict: dict) -> ModelWeights:
    """Read the backbone and, if present, the classifying layer of a state dict; raises as :func:`to_canonical`."""
    layout = detect_layout(state_dict)
    return ModelWeights(layout, read_backbone_as(layout, state_dict), _read_head(layout, state_dict))


def read_backbone_as(layout: str, state_dict: dict) -> Renamed:
    """Read a backbone whose layout is known; raises as :func:`to_canonical`."""
    if layout == 'canonical':
        backbone = _canonical_backbone(state_dict)
    else:
        backbone = read_layout(state_dict, LAYOUTS[layout], layout)
    check_backbone(backbone.weights, layout)
    return backbone


def check_backbone(weights: dict[str, Tensor], layout: str) -> None:
    """Raise ``ValueError`` if canonical weights are not a complete backbone; ``layout`` is for the message."""
    odd = [f'{key} ({type(value).__name__})' for key, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f'{len(odd)} weights are not tensors: {preview(odd)}')
    problems = list_problems(weights, _expected_shapes(weights))
    if problems:
        raise UserError(f'these weights ({layout} layout) are an incomplete ConvNeXt backbone: {problems}')


def _read_head(layout: str, state_dict: dict) -> Renamed:
    """Read the classifying layer; if other layers surround it, none is read, and these are ``dropped``."""
    if layout not in CLASSIFIERS:
        return Renamed({}, {}, [])
    layer = CLASSIFIERS[layout][0]
    keys = {strip_prefixes(key): key for key in state_dict}
    others = [key for name, key in keys.items() if name.startswith(('head.pre_logits.', 'norm_pre.'))]
    if others:
        return Renamed({}, {}, others)
    origins = {f'head.fc.{leaf}': keys[f'{layer}.{leaf}'] for leaf in ('weight', 'bias') if f'{layer}.{leaf}' in keys}
    return Renamed({name: state_dict[key] for name, key in origins.items()}, origins, [])


@renamed_argument('dialect', 'layout')
def from_canonical(state_dict: dict, layout: str) -> dict[str, Tensor]:
    """Return canonical backbone weights under another layout's names; the inverse of :func:`to_canonical`.

    Raises:
        ValueError: If the layout is unknown, or lacks a key (``norm0`` to ``norm2`` of a detector).
    """
    return write_backbone(state_dict, layout).weights


def write_backbone(state_dict: dict, layout: str) -> Renamed:
    """Return the weights of :func:`from_canonical` and their origins."""
    if layout == 'canonical':
        return Renamed(dict(state_dict), {name: name for name in state_dict}, [])
    if layout not in LAYOUTS:
        raise UserError(f'layout={layout!r} is unknown: choose from {["canonical", *LAYOUTS]}')
    if has_conv_stem(rule.canonical or '' for rule in LAYOUTS[layout]) and not has_conv_stem(state_dict):
        raise UserError(f'the {layout} layout has the stem of MMEarth, and these weights that of 4x4 patches')
    return write_layout(state_dict, LAYOUTS[layout], layout)


def without_foreign_norms(weights: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return canonical backbone weights without the output norms that a layout lacks."""
    known = {rule.canonical for rule in LAYOUTS.get(layout, ())}
    return {
        name: value
        for name, value in weights.items()
        if layout == 'canonical' or not name.startswith('norm') or name in known
    }


def classifier_to_canonical(state_dict: dict) -> dict[str, Tensor]:
    """Return the weights of a whole classifier of any layout as those of mmpretrain's ``ImageClassifier``.

    Raises:
        ValueError: If the backbone is incomplete, the classifying layer is missing, or its layout has no classifier.
    """
    return canonical_classifier(read_model(state_dict))


def canonical_classifier(model: ModelWeights) -> dict[str, Tensor]:
    """Return the weights of a classifier as those of mmpretrain's ``ImageClassifier``; raises as
    :func:`classifier_to_canonical`."""
    layer = _classifying_layer(model.layout)[0]
    if model.head.dropped:
        raise UserError(
            f'this classifier has other layers than a norm after pooling and {layer}: {preview(model.head.dropped)}; '
            'convert its backbone alone'
        )
    lost = [f'{layer}.{leaf}' for leaf in ('weight', 'bias') if f'head.fc.{leaf}' not in model.head.weights]
    if lost:
        raise UserError(f'these weights ({model.layout} layout) are not a classifier: {preview(lost)} missing')
    return {**{f'backbone.{name}': value for name, value in model.backbone.weights.items()}, **model.head.weights}


@renamed_argument('dialect', 'layout')
def classifier_from_canonical(state_dict: dict, layout: str) -> dict[str, Tensor]:
    """Return the weights of mmpretrain's ``ImageClassifier`` as another layout's classifier; the inverse of
    :func:`classifier_to_canonical`."""
    layer, prefix = _classifying_layer(layout)
    canonical = _canonical_backbone(state_dict).weights
    if layout == 'huggingface' and not has_grn(canonical):
        prefix = 'convnext.'  # ConvNextForImageClassification
    weights = from_canonical(canonical, layout)
    head = {f'{layer}.{leaf}': state_dict[f'head.fc.{leaf}'] for leaf in ('weight', 'bias')}
    return {**{prefix + name: value for name, value in weights.items()}, **head}


def _classifying_layer(layout: str) -> tuple[str, str]:
    if layout not in CLASSIFIERS:
        raise UserError(f'the {layout} layout has no classifier: choose from {", ".join(CLASSIFIERS)}')
    return CLASSIFIERS[layout]


def pretraining_to_canonical(state_dict: dict) -> dict[str, Tensor]:
    """Return the weights of the official pretraining model as those of our ``FCMAE``, decoder included.

    Raises:
        ValueError: If a key is not in the table, or the encoder is incomplete.
    """
    return read_pretraining(state_dict).weights


def read_pretraining(state_dict: dict) -> Renamed:
    """Return the weights of :func:`pretraining_to_canonical` and their origins."""
    model = read_layout(state_dict, PRETRAINING, 'pretraining')
    read_backbone_as('canonical', model.weights)
    return model


def pretraining_from_canonical(state_dict: dict) -> dict[str, Tensor]:
    """Return the weights of our ``FCMAE`` as the official pretraining script saves them; the inverse of
    :func:`pretraining_to_canonical`."""
    return write_pretraining(state_dict).weights


def write_pretraining(state_dict: dict) -> Renamed:
    """Return the weights of :func:`pretraining_from_canonical` and their origins."""
    keys = {strip_prefixes(key): key for key in state_dict}
    dropped = [key for name, key in keys.items() if name.startswith('data_preprocessor.')]
    weights = {name: state_dict[key] for name, key in keys.items() if key not in dropped}
    written = write_layout(weights, PRETRAINING, 'pretraining')
    return Renamed(written.weights, {new: keys[name] for new, name in written.origins.items()}, dropped)


def read_layout(state_dict: dict, rules: Sequence[Rule], layout: str) -> Renamed:
    """Rename and reshape weights of a foreign layout through its table.

    Any dict of tensors with a model's names and shapes can be converted, such as AdamW's moments: no reshape changes a
    value.
    """
    converted: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    dropped, left_over, twice, copies = [], [], [], []
    templates = [(rule.foreign, rule) for rule in rules]
    for key, value in state_dict.items():
        found = _first_match(templates, strip_prefixes(key))
        if found is None:
            left_over.append(key)
            continue
        groups, rule = found
        if rule.canonical is None:
            dropped.append(key)
            copies += [(key, rule.copy_of)] if rule.copy_of else []
            continue
        name = rule.canonical.format(**groups)
        if name in converted:
            twice.append(key)
        converted[name] = _reshape(rule, key, value)
        origins[name] = key
    if left_over:
        raise UserError(f'{len(left_over)} keys are not of the {layout} layout: {preview(left_over)}')
    if twice:
        raise UserError(f'{len(twice)} weights are in the file twice: {preview(twice)}')
    _check_copies(state_dict, copies, layout)
    return Renamed(converted, origins, dropped)


def _check_copies(state_dict: dict, copies: list[tuple[str, str]], layout: str) -> None:
    """Raise ``ValueError`` unless keys that repeat another one hold the same values."""
    keys = {strip_prefixes(key): key for key in state_dict} if copies else {}
    for key, name in copies:
        value, original = state_dict[key], state_dict.get(keys.get(name, ''))
        if not isinstance(value, Tensor) or not isinstance(original, Tensor):
            raise UserError(f'{key} repeats {name} in the {layout} layout: one of them is missing, or not a tensor')
        if value.shape != original.shape or not (value.is_meta or torch.equal(value, original)):
            raise UserError(
                f'{key} and {name} are one weight in the {layout} layout, and differ here: the file was changed after '
                'it was written'
            )


def _reshape(rule: Rule, key: str, value: Tensor) -> Tensor:
    try:
        return rule.reshape.read(value) if rule.reshape else value
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        shape = tuple(getattr(value, 'shape', ())) or type(value).__name__
        raise UserError(f'{key} is of a wrong shape, {shape}: it cannot become {rule.canonical}') from error


def write_layout(state_dict: dict, rules: Sequence[Rule], layout: str) -> Renamed:
    """Rename and reshape canonical weights into a foreign layout; the inverse of :func:`read_layout`."""
    templates = [(rule.canonical, rule) for rule in rules if rule.canonical]
    converted, origins, left_over = {}, {}, []
    for key, value in state_dict.items():
        found = _first_match(templates, key)
        if found is None:
            left_over.append(key)
            continue
        groups, rule = found
        name = rule.foreign.format(**groups)
        converted[name] = rule.reshape.write(value) if rule.reshape else value
        origins[name] = key
    for rule in rules:
        if rule.copy_of in converted:
            converted[rule.foreign] = converted[rule.copy_of].clone()
            origins[rule.foreign] = origins[rule.copy_of]
    if left_over:
        raise UserError(f'the {layout} layout has no place for {len(left_over)} keys: {preview(left_over)}')
    return Renamed(converted, origins, [])


def find_rule(name: str, rules: Sequence[Rule]) -> tuple[int, dict[str, str]]:
    """Return the index of the rule that a foreign name matches, and its stage, block or downsampling layer.

    Raises:
        ValueError: If no rule matches.
    """
    for line, rule in enumerate(rules):
        match = _pattern(rule.foreign).fullmatch(name)
        if match:
            return line, match.groupdict()
    raise UserError(f'{name} matches no rule of the table')


def _first_match(templates: Iterable[tuple[str, Rule]], key: str) -> tuple[dict[str, str], Rule] | None:
    for template, rule in templates:
        match = _pattern(template).fullmatch(key)
        if match:
            return match.groupdict(), rule
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Turn a table's key into a pattern with the groups s (stage), b (block), d (downsampling, 1 to 3)."""
    pattern = re.escape(template)
    for name, digits in PLACEHOLDERS:
        pattern = pattern.replace(re.escape('{' + name + '}'), f'(?P<{name}>{digits})')
    return re.compile(pattern)


def strip_prefixes(key: str) -> str:
    """Remove the prefixes that wrappers and classifiers put before a key."""
    for pattern, replacement in SPELLINGS:
        key = pattern.sub(replacement, key)
    return key


def preview(keys: list[str]) -> str:
    """Join the first ten keys."""
    return ', '.join(keys[:10]) + (', ...' if len(keys) > 10 else '')


def _canonical_backbone(state_dict: dict) -> Renamed:
    """Return the backbone inside a canonical model's weights."""
    keys = {strip_prefixes(key): key for key in state_dict}
    homes = [name[: -len(ANCHOR)] for name in keys if name.endswith(ANCHOR)]
    if len(homes) > 1:
        raise UserError(f'these weights hold {len(homes)} backbones, {preview(homes)}: keep one of them')
    home = homes[0] if homes else ''
    origins = {name[len(home) :]: key for name, key in keys.items() if name.startswith(home)}
    left_over = [name for name in origins if not CANONICAL_KEY.match(name)]
    if left_over:
        raise UserError(f'{len(left_over)} keys are not of the canonical layout: {preview(left_over)}')
    weights = {}
    for name, key in origins.items():
        value = state_dict[key]
        is_conv = name.endswith(POINTWISE) and getattr(value, 'ndim', 0) == 4  # mmpretrain's linear_pw_conv=False
        weights[name] = CONV_1X1.read(value) if is_conv else value
    return Renamed(weights, origins, [key for name, key in keys.items() if not name.startswith(home)])


def read_arch(weights: dict[str, Tensor]) -> tuple[list[int], list[int]]:
    """Read the four depths and the four widths from canonical weights."""
    blocks = [re.fullmatch(r'stages\.(\d)\.(\d+)\..*', key) for key in weights]
    depths = [
        max([int(match[2]) + 1 for match in blocks if match and int(match[1]) == stage] or [1]) for stage in range(4)
    ]
    widths = [
        [value.numel() for key, value in weights.items() if re.fullmatch(rf'stages\.{stage}\..*\.norm\.\w+', key)]
        for stage in range(4)
    ]
    channels = [
        mode(found) if found else 0 for found in widths
    ]  # the most frequent, so a single odd weight is reported
    return depths, channels


def read_stem(weights: dict[str, Tensor]) -> dict | None:
    """Read the config of the stem from canonical weights; None is the stem of 4x4 patches."""
    if not has_conv_stem(weights):
        patches = weights.get(ANCHOR)
        side = patches.shape[-1] if patches is not None and patches.ndim == 4 else 4
        return dict(type='PatchStem', stride=side) if side in (1, 2) else None  # for cells of 8 and 16 pixels
    kernel = weights.get(f'{CONV_STEM[0]}weight')
    side = kernel.shape[-1] if kernel is not None and kernel.ndim == 4 else 1
    return dict(type='ConvStem', stride=min(max(side, 1), MAX_STRIDE))


def has_conv_stem(names: Iterable[str]) -> bool:
    """Whether canonical names include those of MMEarth's stem."""
    return any(name.startswith(CONV_STEM) for name in names)


def has_grn(weights: dict[str, Tensor]) -> bool:
    """Whether canonical weights hold GRN, as ConvNeXt V2 does."""
    return any(key.endswith(('.grn.gamma', '.grn.beta')) for key in weights)


def has_layer_scale(weights: dict[str, Tensor]) -> bool:
    """Whether canonical weights hold LayerScale, as ConvNeXt V1 does."""
    return any(LAYER_SCALE.fullmatch(key) for key in weights)


def _expected_shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a complete backbone with the depths and channels of ``weights``.

    Output norms are expected only if they are present. Response norms other than GRN keep the shapes that they have,
    which only a config knows.
    """
    depths, channels = read_arch(weights)
    if sum(depths) > len(weights):
        raise UserError(f'these weights number their blocks up to {depths}, but there are only {len(weights)} of them')
    template = _one_block_shapes(weights, channels)
    shapes = {name: shape for name, shape in template.items() if name.startswith('downsample_layers.')}
    for stage, depth in enumerate(depths):
        first = f'stages.{stage}.0.'
        block_shapes = {name.removeprefix(first): shape for name, shape in template.items() if name.startswith(first)}
        for block in range(depth):
            shapes.update({f'stages.{stage}.{block}.{name}': shape for name, shape in block_shapes.items()})
    norms = {name: shape for name, shape in template.items() if name.startswith('norm') and name in weights}
    others = {key: tuple(value.shape) for key, value in weights.items() if OTHER_NORM.fullmatch(key)}
    return {**shapes, **norms, **others}


def _one_block_shapes(weights: dict[str, Tensor], channels: list[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a ``ConvNeXtV2`` with one block per stage, at a cost independent of the file."""
    stem = weights.get(ANCHOR)
    with torch.device('meta'):
        model = ConvNeXtV2(
            dict(depths=(1, 1, 1, 1), channels=[min(max(width, 1), MAX_CHANNELS) for width in channels]),
            max(stem.shape[1], 1) if stem is not None and stem.ndim == 4 else 3,
            response_norm=dict(type='GRN') if has_grn(weights) else None,
            layer_scale_init_value=float(has_layer_scale(weights)),
            stem=read_stem(weights),
        )
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def list_problems(weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> str:
    """Describe the weights that are missing, unexpected or of a wrong shape; '' if there are none."""
    missing = [key for key in shapes if key not in weights]
    extra = [key for key in weights if key not in shapes]
    wrong = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(shape)}'
        for key, shape in shapes.items()
        if key in weights and weights[key].shape != tuple(shape)
    ]
    kinds = (('missing in the file', missing), ('not in the model', extra), ('of a wrong shape', wrong))
    return '; '.join(f'{len(keys)} {kind}: {preview(keys)}' for kind, keys in kinds if keys)


__getattr__ = moved_names(__name__)
