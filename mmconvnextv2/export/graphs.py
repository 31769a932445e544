"""What is exported of a config's model, with a checkpoint's weights, and the facts that a reader of the file needs."""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..checkpoint import check_weights, extract_state_dict, read_backbone
from ..checkpoint.load import load_file
from ..checkpoint.pretrained import load_into
from ..checkpoint.whole_model import whole_model_weights
from ..models.convnext_v2 import ConvNeXtV2
from ..utils.config import read_normalization, steps_of_test
from ..utils.errors import UserError
from ..version import __version__
from .detectors import detector_kind
from .pixels import SMALLEST, PixelGraph, plain_copy


class BackboneGraph(PixelGraph):
    """Maps (B, C, H / s, W / s), named ``stride4`` to ``stride32``; ``features`` (B, C) of a classifier's backbone."""

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model(images)

    @property
    def output_names(self) -> tuple[str, ...]:
        if self.model.gap_before_final_norm:
            return tuple(f'features{stage}' for stage in self.model.out_indices)
        return tuple(f'stride{4 << stage}' for stage in self.model.out_indices)

    @property
    def backbone(self) -> ConvNeXtV2:
        return self.model


class SegmentorGraph(PixelGraph):
    """Logits (B, classes, H, W) of whole images; the sliding window of ``test_cfg`` is left to the caller."""

    output_names: tuple[str, ...] = ('logits',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(images, mode='tensor')
        return (F.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=self.model.align_corners),)


class LabelGraph(SegmentorGraph):
    """The class of every pixel of whole images, uint8 (B, H, W), or int64 for more than 256 classes."""

    output_names = ('labels',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = super().run(images)[0].float()
        if logits.shape[1] == 1:
            return ((logits[:, 0].sigmoid() > self.model.decode_head.threshold).to(torch.uint8),)
        return (logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int64),)

    def difference(self, expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str:
        share = (expected[0] != found[0]).double().mean().item()
        allowed = max(limit, 1e-3)
        if share > allowed:
            raise UserError(f'differ from PyTorch at {share:.2%} of the pixels, allowed are {allowed:.2%}')
        return f'differs from PyTorch at {share:.4%} of the pixels'


class ClassifierGraph(PixelGraph):
    """Logits (B, classes)."""

    output_names = ('logits',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images, mode='tensor'),)


SEGMENTORS, CLASSIFIERS = ('EncoderDecoder',), ('ImageClassifier',)
SCOPES = dict(detector='mmdet', segmentor='mmseg', classifier='mmpretrain')
PARTS = ('backbone', *SCOPES)
OUTPUTS = ('logits', 'labels')
NMS = ('recipe', 'hard', 'outside')
MASKS = ('boxes', 'images')


class GraphOptions(NamedTuple):
    """What a file computes, and from what.

    Args:
        half (bool): Compute in float16. Defaults to False.
        pixels (str): Input, one of ``PIXELS``. Defaults to ``'float32'``.
        output (str): Output of a segmentor, one of ``OUTPUTS``. Defaults to ``'logits'``.
        nms (str): NMS of a detector, one of ``NMS``: that of the config, hard NMS in place of soft-NMS, or none.
            Defaults to ``'recipe'``.
        masks (str): Masks of a detector, one of ``MASKS``: probabilities on a grid in each box, or binary masks of the
            size of the input. Defaults to ``'boxes'``.
    """

    half: bool = False
    pixels: str = 'float32'
    output: str = 'logits'
    nms: str = 'recipe'
    masks: str = 'boxes'


class ExportedPixels(NamedTuple):
    """Input format of a model: the order of channels, and the mean and standard deviation per channel."""

    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_pixels(cfg: Config) -> ExportedPixels:
    """Read a config's data preprocessor; without mean and standard deviation images are not normalised."""
    channels, found = cfg.model.backbone.get('in_channels', 3), read_normalization(cfg)
    mean, std = found.mean or (0.0,) * channels, found.std or (1.0,) * channels
    if channels != 3:
        return ExportedPixels(f'{channels} channels as in training', mean, std)
    return ExportedPixels('RGB' if found.swaps_channels else 'BGR', mean, std)


class Exported(NamedTuple):
    """A graph, its float32 version as a reference, and facts that a reader of the file needs."""

    graph: PixelGraph
    reference: PixelGraph
    facts: dict[str, Any]


def default_part(cfg: Config) -> str:
    """Return the part to export by default, the whole model.

    Raises:
        ValueError: If the whole model cannot be exported, as that of FCMAE: it must be said that the file is to hold
            its backbone only.
    """
    part = {scope: part for part, scope in SCOPES.items()}.get(cfg.default_scope)
    names = dict(segmentor=SEGMENTORS, classifier=CLASSIFIERS).get(part or '')
    if part is None or (names is not None and cfg.model.type not in names):
        raise UserError(
            f'model.type={cfg.model.type!r} ({cfg.default_scope}) is not exported whole: add --part backbone to export '
            'its backbone, without the rest'
        )
    return part


def read_graph(
    cfg: Config, checkpoint: str, part: str, options: GraphOptions = GraphOptions(), weights: str = 'default'
) -> Exported:
    """Build the part of a config's model to export, with a checkpoint's weights.

    Args:
        cfg (Config): Config of any recipe; its ``default_scope`` must be imported.
        checkpoint (str): Path or URL of a checkpoint that the config trained; for the backbone, in any layout.
        part (str): One of ``PARTS``.
        options (GraphOptions): What the file computes. Defaults to float32 pixels, and everything as the config says.
        weights (str): See :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.

    Raises:
        ValueError: If the config has no such part, or the checkpoint is of another model.
    """
    pixels, resize = read_pixels(cfg), read_resize(cfg)
    cfg = Config(dict(model=deepcopy(cfg.model), scope=cfg.default_scope, file=cfg.filename))
    if cfg.model.backbone.type != 'ConvNeXtV2':
        raise UserError(f'model.backbone.type={cfg.model.backbone.type!r}: only models with ConvNeXtV2 are exported')
    cfg.model.backbone.init_cfg = None
    content = load_file(checkpoint)
    state_dict = extract_state_dict(content, weights) if part == 'backbone' else whole_model_weights(content, weights)
    if part == 'backbone':
        model = MODELS.build(cfg.model.backbone)
        load_into(model, read_backbone(state_dict), checkpoint)
    elif cfg.scope != SCOPES[part]:
        raise UserError(
            f'--part {part} exports models of {SCOPES[part]}, and the config has {cfg.model.type} of {cfg.scope}: use '
            '--part backbone'
        )
    else:
        model = _build_whole(cfg, state_dict, checkpoint)
    make = partial(_graph_kind(part, model, options), model, pixels.mean, pixels.std, pixels=options.pixels)
    reference = make()
    graph = make(half=True) if options.half else reference
    facts = dict(
        config=os.path.basename(cfg.file),
        part=part,
        classes=class_names(content),
        mean=pixels.mean,
        std=pixels.std,
        precision=str(graph.dtype).partition('.')[2],
        mmconvnextv2=__version__,
        input=_describe_input(pixels, options.pixels, graph.smallest),
        resize=resize,
        outputs=graph.output_names,
    )
    if part == 'detector':
        facts |= graph.facts
    return Exported(graph, reference, facts)


def read_resize(cfg: Config) -> dict[str, Any]:
    """Return what the test pipeline does to the size of images, for the reader of a file to do.

    Returns:
        dict: ``scale`` (width, height) and ``keep_ratio``, as in OpenMMLab's ``Resize``: sides at most the longer and
        the shorter number if the ratio is kept. ``pad`` (width, height) and ``pad_value`` if the image is then padded
        at the right and the bottom; ``short_edge`` and ``crop`` for a classifier. Interpolation is bilinear without
        antialiasing, unless ``interpolation`` names another. Empty if images keep their size.
    """
    found: dict[str, Any] = {}
    for step in steps_of_test(cfg):
        kind = step['type'].rpartition('.')[2]
        if kind in ('Resize', 'ResizeEdge', 'ResizeShortestEdge', 'CenterCrop', 'Pad'):
            names = dict(size='pad', pad_val='pad_value') if kind == 'Pad' else {}
            names |= dict(crop_size='crop') if kind == 'CenterCrop' else {}
            names |= dict(scale='short_edge') if kind == 'ResizeEdge' else {}
            given = {names.get(key, key): value for key, value in step.items() if key not in ('type', 'backend')}
            found |= given
    return found


def _describe_input(pixels: ExportedPixels, kind: str, smallest: int) -> str:
    value = 'float32, (pixels - mean) / std' if kind == 'normalized' else f'{kind} pixels 0 to 255'
    return f'{pixels.channel_order}, {value}, sides of {smallest} and more'


def _graph_kind(part: str, model: nn.Module, options: GraphOptions) -> Callable[..., PixelGraph]:
    if part == 'backbone':
        return BackboneGraph
    if part == 'classifier':
        return ClassifierGraph
    if part == 'segmentor':
        return LabelGraph if options.output == 'labels' else SegmentorGraph
    return partial(detector_kind(model), nms=options.nms, mask_output=options.masks)


def _build_whole(cfg: Config, weights: dict[str, Tensor], source: str) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.scope):
        model = MODELS.build(cfg.model)
    check_weights(model, weights, source)
    missing, _ = model.load_state_dict(weights, strict=False)
    if missing:  # running statistics
        raise UserError(
            f'the checkpoint {source} lacks {len(missing)} buffers, {", ".join(missing[:3])}: give one '
            'that this config trained'
        )
    if cfg.scope == 'mmseg' and not isinstance(_try(model, cfg.model.backbone.get('in_channels', 3)), Tensor):
        raise UserError(f'{type(model.decode_head).__name__} does not turn maps into logits: use --part backbone')
    return model


@torch.no_grad()
def _try(model: nn.Module, channels: int) -> Any:
    """Return a segmentor's output, or None if its head needs more inputs than maps."""
    try:
        return plain_copy(model)(torch.zeros(1, channels, SMALLEST, SMALLEST), mode='tensor')
    except TypeError:
        return None


def class_names(content: dict) -> tuple[str, ...]:
    """Return the class names that mmengine wrote into a checkpoint, or () for other files."""
    meta = content.get('meta')
    classes = meta.get('dataset_meta', {}).get('classes') if isinstance(meta, dict) else None
    return tuple(map(str, classes or ()))
