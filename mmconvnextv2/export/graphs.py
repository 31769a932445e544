"""Exportable graphs from pixels to maps or logits, built from operations that every runtime supports.

A graph includes the data preprocessor's mean and standard deviation. Its model is a copy with two changes. Blocks run
layer by layer, because one fused operation would hide GRN. Pooling to a fixed number of cells becomes a matrix
product, because for pooling the ONNX exporter of torch 2.11 writes a graph that is wrong at other sizes than the traced
one. With half precision the layers compute in float16; inputs, outputs, normalisation, the sums of norms, boxes, scores
and masks stay float32.
"""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..checkpoint import check_weights, extract_state_dict, read_backbone
from ..checkpoint.cross_check import relative_difference
from ..checkpoint.load import load_file
from ..checkpoint.pretrained import load_into
from ..checkpoint.whole_model import whole_model_weights
from ..models.convnext_v2 import ConvNeXtV2, set_kernels
from ..utils.config import read_normalization, steps_of_test
from ..utils.errors import UserError
from ..version import __version__

SMALLEST = 64  # pixels per side, twice the stride of the last stage


class CellAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with two weight matrices, for maps of any size; sums are in float32.

    Args:
        output_size (int): Number of cells n per side.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Average a map of shape (B, C, H, W) to cells of shape (B, C, n, n)."""
        rows, columns = (self._shares(size, features_BCHW.device) for size in features_BCHW.shape[2:])
        return (rows @ features_BCHW.float() @ columns.T).to(features_BCHW.dtype)

    def _shares(self, size: int, device: torch.device) -> Tensor:
        """Return the weight of each site in each cell, (n, size); cells overlap unless n divides ``size``."""
        cell, site = torch.arange(self.output_size, device=device)[:, None], torch.arange(size, device=device)
        first, end = cell * size // self.output_size, ((cell + 1) * size + self.output_size - 1) // self.output_size
        return ((site >= first) & (site < end)).float() / (end - first)


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model for export: in evaluation mode, with blocks layer by layer and pooling as :class:`CellAverage`."""
    model = revert_sync_batchnorm(deepcopy(model)).eval().requires_grad_(False)
    set_kernels(model, 'layers')
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(module, name, CellAverage(child.output_size))
    return model


class Float32Norm(nn.Module):
    """A norm whose sums float16 cannot hold, computed in float32.

    Args:
        norm (nn.Module): The norm that it replaces.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features in the dtype of which they are."""
        return self.norm(features.float()).to(features.dtype)


def norm_in_float32(model: nn.Module) -> None:
    """Compute GroupNorm, InstanceNorm and LayerNorm in float32, in place; GRN does by itself."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)):
                setattr(module, name, Float32Norm(child))


class PixelGraph(nn.Module):
    """A model preceded by the normalisation of its pixels.

    Args:
        model (nn.Module): Model, which is copied; see :func:`plain_copy`.
        mean (Sequence[float]): Mean per channel, in pixel values.
        std (Sequence[float]): Standard deviation per channel, in pixel values.
        half (bool): Compute in float16, but norms, boxes, scores and masks in float32. Defaults to False.
        pixels (str): Input, one of ``PIXELS``: pixels of 0 to 255 in float32 or uint8, or ``'normalized'`` for float32
            that the caller has normalised. Defaults to ``'float32'``.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        half: bool = False,
        pixels: str = 'float32',
    ) -> None:
        super().__init__()
        self.dtype = torch.float16 if half else torch.float32
        self.pixels = pixels
        self.model = plain_copy(model).to(self.dtype)
        if half:
            norm_in_float32(self.model)
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()  # exporters go back to the mode of the outermost module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return float32 or integer outputs in the order of :attr:`output_names`, for images (B, C, H, W)."""
        if self.pixels != 'normalized':
            images = (images.float() - self.mean) / self.std
        outputs = self.run(images.to(self.dtype))
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model on normalised images."""
        raise NotImplementedError

    @property
    def output_names(self) -> tuple[str, ...]:
        """One name per output."""
        raise NotImplementedError

    @property
    def backbone(self) -> ConvNeXtV2:
        """The model's backbone."""
        return self.model.backbone

    any_size = True  # whether batch, height and width can be free
    traced = False  # whether only torch's older tracer can record it

    @property
    def smallest(self) -> int:
        """Smallest height and width in pixels; torch.export specialises on maps with a single row."""
        return SMALLEST

    def draw_images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return random images to compare outputs on, of a batch, height and width, in the form that it reads."""
        batch, height, width = shape
        generator, size = torch.Generator().manual_seed(0), (height, width)
        noise = torch.rand(batch, self.backbone.in_channels, height, width, generator=generator)
        blobs = torch.rand(batch, self.backbone.in_channels, 6, 6, generator=generator)
        pixels = (noise + 3 * F.interpolate(blobs, size, mode='bicubic').clamp(0, 1)) * (255 / 4)
        if self.pixels == 'normalized':
            return (pixels - self.mean) / self.std
        return pixels.to(torch.uint8) if self.pixels == 'uint8' else pixels

    def difference(self, expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str:
        """Describe how outputs differ from those that are expected.

        Raises:
            ValueError: If they differ by more than ``limit``, as a fraction of the largest value, or are NaN.
        """
        differences = [relative_difference(one, other) for one, other in zip(expected, found, strict=True)]
        worst = max(differences, key=lambda one: (one != one, one))  # NaN counts as the largest
        if not worst <= limit:
            raise UserError(f"differ from PyTorch's by {worst:.1e} of the largest value, allowed are {limit:.0e}")
        return f'differs from PyTorch by {worst:.1e} of the largest value'


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
        if share > limit:
            raise UserError(f'differ from PyTorch at {share:.2%} of the pixels, allowed are {limit:.2%}')
        return f'differs from PyTorch at {share:.4%} of the pixels'


class ClassifierGraph(PixelGraph):
    """Logits (B, classes)."""

    output_names = ('logits',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images, mode='tensor'),)


SEGMENTORS, CLASSIFIERS = ('EncoderDecoder',), ('ImageClassifier',)
SCOPES = dict(detector='mmdet', segmentor='mmseg', classifier='mmpretrain')
PARTS = ('backbone', *SCOPES)
PIXELS = ('float32', 'uint8', 'normalized')
OUTPUTS = ('logits', 'labels')
NMS = ('recipe', 'hard', 'outside')
MASKS = ('boxes', 'images')
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
    cfg = Config(dict(model=cfg.model, scope=cfg.default_scope, file=cfg.filename))  # a copy
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
    from .detectors import detector_kind

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
