"""Exportable graphs from pixels to maps or logits, built from operations that every runtime supports.

A graph includes the data preprocessor's mean and standard deviation. Its model is a copy with two changes. Blocks run
layer by layer, because one fused operation would hide GRN. Pooling to a fixed number of cells becomes a matrix
product, because for pooling the ONNX exporter of torch 2.11 writes a graph that is wrong at other sizes than the traced
one. With half precision the layers compute in float16; inputs, outputs, normalisation and GRN's sums stay float32.
"""

import os
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..checkpoint import check_weights, extract_state_dict, read_backbone
from ..checkpoint.load import load_file
from ..checkpoint.pretrained import load_into
from ..checkpoint.whole_model import whole_model_weights
from ..models.convnext_v2 import ConvNeXtV2, set_kernels
from ..utils.config import read_normalization
from ..utils.errors import UserError
from ..version import __version__

SMALLEST = 64  # pixels per side; torch.export specialises on maps with a single row


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


class PixelGraph(nn.Module):
    """A model preceded by the normalisation of its pixels.

    Args:
        model (nn.Module): Model, which is copied; see :func:`plain_copy`.
        mean (Sequence[float]): Mean per channel, in pixel values.
        std (Sequence[float]): Standard deviation per channel, in pixel values.
        half (bool): Compute in float16. Defaults to False.
    """

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], half: bool = False) -> None:
        super().__init__()
        self.dtype = torch.float16 if half else torch.float32
        self.model = plain_copy(model).to(self.dtype)
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return float32 outputs in the order of :attr:`output_names`, for float32 pixels (B, C, H, W), 0 to 255."""
        outputs = self.run(((images - self.mean) / self.std).to(self.dtype))
        return tuple(output.float() for output in outputs)

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

    output_names = ('logits',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(images, mode='tensor')
        return (F.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=self.model.align_corners),)


class ClassifierGraph(PixelGraph):
    """Logits (B, classes)."""

    output_names = ('logits',)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images, mode='tensor'),)


WHOLE = {
    'segmentor': ('mmseg', 'EncoderDecoder', SegmentorGraph),
    'classifier': ('mmpretrain', 'ImageClassifier', ClassifierGraph),
}
PARTS = ('backbone', *WHOLE)


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
        ValueError: If the whole model cannot be exported, as that of a detector: it must be said that the file is to
            hold its backbone only.
    """
    kinds = {(scope, kind): part for part, (scope, kind, _) in WHOLE.items()}
    part = kinds.get((cfg.default_scope, cfg.model.type))
    if part is None:
        raise UserError(
            f'model.type={cfg.model.type!r} ({cfg.default_scope}) is not exported whole: add --part backbone to export '
            f'its backbone, without {"neck, heads and boxes" if cfg.default_scope == "mmdet" else "the rest"}'
        )
    return part


def read_graph(cfg: Config, checkpoint: str, part: str, half: bool = False, weights: str = 'default') -> Exported:
    """Build the part of a config's model to export, with a checkpoint's weights.

    Args:
        cfg (Config): Config of any recipe; its ``default_scope`` must be imported.
        checkpoint (str): Path or URL of a checkpoint that the config trained; for the backbone, in any layout.
        part (str): One of ``PARTS``.
        half (bool): Compute in float16. Defaults to False.
        weights (str): See :func:`mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.

    Raises:
        ValueError: If the config has no such part, or the checkpoint is of another model.
    """
    pixels, cfg = read_pixels(cfg), Config(dict(model=cfg.model, scope=cfg.default_scope, file=cfg.filename))  # a copy
    if cfg.model.backbone.type != 'ConvNeXtV2':
        raise UserError(f'model.backbone.type={cfg.model.backbone.type!r}: only models with ConvNeXtV2 are exported')
    cfg.model.backbone.init_cfg = None
    content = load_file(checkpoint)
    state_dict = extract_state_dict(content, weights) if part == 'backbone' else whole_model_weights(content, weights)
    kind: type[PixelGraph] = BackboneGraph
    if part == 'backbone':
        model = MODELS.build(cfg.model.backbone)
        load_into(model, read_backbone(state_dict), checkpoint)
    else:
        scope, name, kind = WHOLE[part]
        if (cfg.scope, cfg.model.type) != (scope, name):
            raise UserError(
                f'--part {part} exports {name} of {scope}, and the config has {cfg.model.type} of '
                f'{cfg.scope}: use --part backbone'
            )
        model = _build_whole(cfg, state_dict, checkpoint)
    reference = kind(model, pixels.mean, pixels.std)
    graph = kind(model, pixels.mean, pixels.std, half) if half else reference
    return Exported(
        graph,
        reference,
        dict(
            config=os.path.basename(cfg.file),
            part=part,
            classes=class_names(content),
            mean=pixels.mean,
            std=pixels.std,
            precision=str(graph.dtype).partition('.')[2],
            mmconvnextv2=__version__,
            input=f'{pixels.channel_order}, float32 pixels 0 to 255, sides of {SMALLEST} and more',
        ),
    )


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
