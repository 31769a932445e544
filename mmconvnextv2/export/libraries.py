"""Export weights in the formats of other libraries: Hugging Face folders, timm files, safetensors; with model cards.

``mmconvnextv2.checkpoint`` converts names and shapes. The target is replaced only after its library has loaded the new
file and its outputs match ``ConvNeXtV2``'s, because some versions of transformers compute another GRN.
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import classifier_from_canonical, extract_state_dict, from_canonical, read_arch
from ..checkpoint.build import backbone_from_weights, run_backbone
from ..checkpoint.conversion import ANCHOR, ModelWeights, canonical_classifier, read_model, without_foreign_norms
from ..checkpoint.convert import compact, layout_variant, write_atomically
from ..checkpoint.cross_check import relative_difference
from ..checkpoint.load import load_file
from ..models.convnext_v2 import ARCHS
from ..utils.atomic import new_folder, replacing_files
from ..utils.errors import UserError
from .graphs import class_names
from .model_card import ModelCard, write_card
from .runtimes import require

TOLERANCE = 1e-4  # as a fraction of the largest value


class AnyCheckpoint(NamedTuple):
    """A checkpoint of any layout after a single reading.

    Args:
        state_dict (dict): State dict in the file.
        model (ModelWeights): Its layout, backbone and head.
        classes (tuple[str]): Names of the classes, empty if the file has none.
    """

    state_dict: dict[str, Tensor]
    model: ModelWeights
    classes: tuple[str, ...]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights of the backbone in the canonical layout."""
        return self.model.backbone.weights

    @property
    def classifier(self) -> dict[str, Tensor] | None:
        """The whole classifier in the canonical layout, None without a head."""
        return canonical_classifier(self.model) if self.model.has_head else None

    @property
    def arch(self) -> dict[str, list[int]]:
        """``depths`` and ``channels`` of the backbone."""
        return dict(zip(('depths', 'channels'), read_arch(self.weights)))

    @property
    def arch_name(self) -> str | None:
        """Key of the architecture in ``ARCHS``, None if it is not one of them."""
        arch = {key: tuple(value) for key, value in self.arch.items()}
        return next((name for name, known in ARCHS.items() if known == arch), None)

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return self.weights[ANCHOR].shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier, 0 without a head."""
        return len(self.classifier['head.fc.bias']) if self.classifier else 0

    @property
    def normed_stages(self) -> list[int]:
        """Stages with an output norm: those that a detector reads, or the last one for a classifier."""
        return [stage for stage in range(4) if f'norm{stage}.weight' in self.weights]

    @property
    def facts(self) -> dict[str, str]:
        """Rows for a model card."""
        depths, channels = (', '.join(map(str, value)) for value in self.arch.values())
        count = sum(value.numel() for value in (self.classifier or self.weights).values())
        facts = {
            'architecture': f'{self.arch_name or "own"}, depths {depths}, channels {channels}',
            'parameters': f'{count / 1e6:.2f} M',
        }
        return {**facts, 'classes': str(self.num_classes)} if self.classifier else facts

    def convert(self, layout: str) -> dict[str, Tensor]:
        """Convert the classifier, or else the backbone, to a layout; a missing final norm becomes the identity."""
        if self.classifier:
            converted = classifier_from_canonical(self.classifier, layout)
        else:
            last = self.weights['downsample_layers.3.1.bias']
            norm = {'norm3.weight': torch.ones_like(last), 'norm3.bias': torch.zeros_like(last)}
            converted = from_canonical(without_foreign_norms({**norm, **self.weights}, layout), layout)
        return {name: compact(value) for name, value in converted.items()}


def read_source(checkpoint: str, weights: str = 'default') -> AnyCheckpoint:
    """Read a checkpoint.

    Args:
        checkpoint (str): Path or URL.
        weights (str): See :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.

    Raises:
        ValueError: If the file cannot be read, or does not hold a complete backbone.
    """
    content = load_file(checkpoint)
    state_dict = extract_state_dict(content, weights)
    return AnyCheckpoint(state_dict, read_model(state_dict), class_names(content))


@torch.no_grad()
def our_maps(source: AnyCheckpoint, images: Tensor) -> tuple[Tensor, ...]:
    """Return the maps of all stages with an output norm."""
    return backbone_from_weights(source.weights).eval()(images)


@torch.no_grad()
def our_outputs(source: AnyCheckpoint, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last map without its norm, and the logits or, without a head, the normalised mean over sites."""
    last_map, features = run_backbone(source.weights, images)
    head = source.classifier
    return last_map, F.linear(features, head['head.fc.weight'], head['head.fc.bias']) if head else features


def check_same(expected: Sequence[Tensor], found: Sequence[Tensor], library: str) -> str:
    """Compare our outputs with a library's, and return a report.

    Raises:
        ValueError: If they differ by more than ``TOLERANCE``.
    """
    library = f'{library} {version(library)}'
    worst = max(relative_difference(one, other) for one, other in zip(expected, found, strict=True))
    if not worst <= TOLERANCE:
        raise UserError(
            f'{library} computes other outputs from these weights, {worst:.1e} of the largest value '
            'away: nothing was written; use another version of it'
        )
    return f'{library} loads it, and matches ConvNeXtV2 to within {worst:.1e} of the largest value'


def export_hugging_face(source: AnyCheckpoint, folder: str, card: ModelCard, size: int = 224) -> str:
    """Write a folder for transformers' ``from_pretrained``.

    A classifier becomes ``ConvNextV2ForImageClassification``. The backbone of a detector or segmentor, with one norm
    per map, becomes ``ConvNextV2Backbone``, and any other backbone ``ConvNextV2Model``.

    Args:
        source (AnyCheckpoint): Checkpoint; see :func:`read_source`.
        folder (str): Folder to create.
        card (ModelCard): User-supplied metadata for the model card.
        size (int): Pixels per side, for the image processor. Defaults to 224.

    Returns:
        str: Report of what was written and how far outputs differ.

    Raises:
        ValueError: If the folder exists, transformers is missing or computes other outputs, or the weights have no
            GRN.
    """
    require('transformers', 'huggingface_hub')
    _need_grn(source)
    model = _hugging_face_model(source)
    name, images = type(model).__name__, _images(source)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        _save_processor(source, card, size, partial)
        with torch.no_grad():
            found = type(model).from_pretrained(partial).eval()(images, output_hidden_states=True)
        if 'feature_maps' in found:
            report = check_same(our_maps(source, images), found.feature_maps, 'transformers')
        else:
            features = found.logits if source.classifier else found.pooler_output
            report = check_same(our_outputs(source, images), (found.hidden_states[-1], features), 'transformers')
        write_card(
            os.path.join(partial, 'README.md'),
            os.path.basename(os.path.abspath(folder)),
            card,
            'transformers',
            source.facts,
            f'from transformers import {name}\n\nmodel = {name}.from_pretrained({folder!r})',
            bool(source.classifier),
        )
    return f'{folder}: {name}; {report}'


def _hugging_face_model(source: AnyCheckpoint) -> nn.Module:
    from transformers import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model

    layout = layout_variant('huggingface', source.weights)
    arguments = dict(
        num_channels=source.in_channels,
        depths=source.arch['depths'],
        hidden_sizes=source.arch['channels'],
        layer_norm_eps=1e-6,
    )
    if source.classifier:
        kind, names = ConvNextV2ForImageClassification, source.classes
        if len(names) != source.num_classes:
            names = [f'LABEL_{label}' for label in range(source.num_classes)]
        arguments.update(id2label=dict(enumerate(names)), label2id={name: label for label, name in enumerate(names)})
    elif layout == 'huggingface-backbone':
        kind = ConvNextV2Backbone
        arguments['out_features'] = [f'stage{stage + 1}' for stage in source.normed_stages]
    else:
        kind = ConvNextV2Model
    model = kind(ConvNextV2Config(**arguments))
    model.load_state_dict(source.convert(layout))
    return model


def _save_processor(source: AnyCheckpoint, card: ModelCard, size: int, folder: str) -> None:
    """Write the image processor's file, only for images with three channels."""
    if source.in_channels == 3:
        from transformers import ConvNextImageProcessor

        mean, std = ([value / 255 for value in values] for values in (card.pixels.mean, card.pixels.std))
        processor = ConvNextImageProcessor(size=dict(shortest_edge=size), resample=3, image_mean=mean, image_std=std)
        processor.save_pretrained(folder)


def export_timm(source: AnyCheckpoint, target: str, card: ModelCard) -> str:
    """Write a file for ``timm.create_model(..., checkpoint_path=...)``, and its model card as ``.md`` next to it.

    Args:
        source (AnyCheckpoint): Checkpoint; see :func:`read_source`.
        target (str): ``.safetensors`` file to write.
        card (ModelCard): User-supplied metadata for the model card.

    Returns:
        str: Report of what was written and how far outputs differ.

    Raises:
        ValueError: If timm is missing or computes other outputs, or the weights have no GRN.
    """
    require('timm', 'huggingface_hub')
    from timm import create_model, is_model

    _need_grn(source)
    layout = layout_variant('timm', source.weights)
    name = f'convnextv2_{source.arch_name}'
    arguments = dict(num_classes=source.num_classes)
    if not is_model(name):
        name = 'convnextv2_atto' if layout == 'timm-conv' else 'convnextv2_tiny'
        arguments.update(depths=source.arch['depths'], dims=source.arch['channels'])
    if source.in_channels != 3:
        arguments['in_chans'] = source.in_channels
    images = _images(source)
    with replacing_files(target) as partial:
        write_atomically({}, source.convert(layout), partial)
        model = create_model(name, checkpoint_path=partial, **arguments).eval()
        with torch.no_grad():
            report = check_same(our_outputs(source, images), (model.forward_features(images), model(images)), 'timm')
        call = ', '.join(
            [repr(name), f'checkpoint_path={target!r}', *(f'{key}={value}' for key, value in arguments.items())]
        )
        write_card(
            f'{os.path.splitext(partial)[0]}.md',
            os.path.basename(target),
            card,
            'timm',
            source.facts,
            f'import timm\n\nmodel = timm.create_model({call})',
            bool(source.classifier),
        )
    return f'{target}: {name}; {report}'


def export_safetensors(source: AnyCheckpoint, folder: str, card: ModelCard) -> str:
    """Write ``model.safetensors`` in the canonical layout, and a model card.

    A source in the canonical layout is written as the whole model, any other as its classifier or backbone.

    Args:
        source (AnyCheckpoint): Checkpoint; see :func:`read_source`.
        folder (str): Folder to create.
        card (ModelCard): User-supplied metadata for the model card.

    Returns:
        str: Report of what was written.

    Raises:
        ValueError: If the folder exists.
    """
    require('safetensors', 'huggingface_hub')
    is_ours = source.model.layout == 'canonical'
    weights = source.state_dict if is_ours else source.classifier or source.weights
    weights = {
        name: compact(value)
        for name, value in weights.items()
        if isinstance(value, Tensor) and not name.startswith('data_preprocessor.')
    }
    with new_folder(folder) as partial:
        path = os.path.join(partial, 'model.safetensors')
        write_atomically({}, weights, path)
        back = load_file(path)
        if back.keys() != weights.keys() or not all(torch.equal(back[name], weights[name]) for name in weights):
            raise UserError(f'{folder}: the file reads back with other weights than were written')
        write_card(
            os.path.join(partial, 'README.md'),
            os.path.basename(os.path.abspath(folder)),
            card,
            'mmconvnextv2',
            source.facts,
            "init_cfg = dict(type='ConvNeXtV2Pretrained', checkpoint="
            f'{os.path.join(folder, "model.safetensors")!r})  # of the backbone',
            bool(source.classifier),
        )
    return f'{folder}: {len(weights)} weights, read back with the same bits'


def _need_grn(source: AnyCheckpoint) -> None:
    if not any(name.endswith('.grn.gamma') for name in source.weights):
        raise UserError(
            'these weights have no GRN, which the ConvNeXt V2 of timm and transformers requires: '
            'tools/convert_checkpoint.py converts them without these libraries'
        )


def _images(source: AnyCheckpoint) -> Tensor:
    return torch.randn(2, source.in_channels, 64, 96, generator=torch.Generator().manual_seed(0))
