"""Models to analyse: ours, mmpretrain's and timm's by name, or the model of any file of ConvNeXt weights."""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..checkpoint import detect_layout, extract_state_dict, from_canonical, load_backbone, to_canonical
from ..checkpoint.build import backbone_from_weights
from ..checkpoint.conversion import read_backbone_as
from ..checkpoint.load import load_file
from ..checkpoint.strict import load_strictly
from ..models.convnext_v2 import ARCHS, ConvNeXtV2
from ..utils.config import IMAGENET, read_config, read_normalization
from ..utils.errors import UserError
from ..utils.public_models import find_model

RANDOM = 'random'
HELP = f"""LABEL names the model in figures. SOURCE and WEIGHTS are one of:
  FILE                      a checkpoint of a ConvNeXt of any known layout, a path or a URL
  ARCH FILE                 {', '.join(ARCHS)}, with a checkpoint
  NAME                      a public model; `python -m mmconvnextv2 models` lists names
  CONFIG.py FILE            the backbone of a config (any response norm), with a checkpoint
  mmpretrain:NAME [FILE]    a model of mmpretrain, with its published weights or a checkpoint
  timm:NAME [FILE]          a model of timm, likewise
"random" instead of FILE keeps the randomly initialised weights."""


class AnalyzedModel(NamedTuple):
    """A model to analyse, and the mean and standard deviation of its RGB images (0 to 255), three values each."""

    label: str
    model: nn.Module
    mean: Sequence[float] = IMAGENET[0]
    std: Sequence[float] = IMAGENET[1]

    def forward(self, images: Tensor) -> Any:
        """Run uint8 images (B, 3, H, W) through the model, and return what it returns.

        Raises:
            ValueError: If the model asserts another image size.
        """
        parameter = next(self.model.parameters())
        mean, std = (parameter.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        try:
            return self.model((images.to(parameter) - mean) / std)
        except AssertionError as error:
            raise UserError(
                f'{self.label} refuses images of {images.shape[2]}x{images.shape[3]} pixels: {error} '
                'Give another --size'
            ) from error


def load_subjects(specs: Sequence[Sequence[str]], device: str = 'cpu') -> list[AnalyzedModel]:
    """Build models from ``(LABEL, SOURCE)`` or ``(LABEL, SOURCE, WEIGHTS)``, in evaluation mode.

    Raises:
        ValueError: If a description matches none of ``HELP``, a label is repeated, or weights do not fit.
    """
    labels = [spec[0] for spec in specs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f'--model: the labels {twice} are repeated; give each model its own')
    return [load_subject(*_split(spec), device) for spec in specs]


def _split(spec: Sequence[str]) -> tuple[str, str, str | None]:
    if len(spec) not in (2, 3):
        raise UserError(f'--model {" ".join(spec)}: expected LABEL SOURCE [WEIGHTS]; --help lists the options')
    return spec[0], spec[1], spec[2] if len(spec) == 3 else None


def load_subject(label: str, source: str, weights: str | None = None, device: str = 'cpu') -> AnalyzedModel:
    """Build one model; see ``HELP``."""
    library, _, name = source.partition(':')
    mean, std = IMAGENET.mean, IMAGENET.std
    torch.manual_seed(0)
    if library in LIBRARIES and name:
        model = LIBRARIES[library](name, weights)
    elif source.endswith('.py'):
        model, mean, std = _load_config(source, _required(weights, source))
    elif (public := find_model(source)) is not None:
        model, mean, std = _load_config(public.config, weights or source)
    elif source in ARCHS:
        model = _filled(ConvNeXtV2(source), _required(weights, source))
    elif weights is None:
        model = _load_file(source)
    else:
        raise UserError(
            f'SOURCE={source!r} is not an architecture ({", ".join(ARCHS)}), config or library '
            f'({", ".join(LIBRARIES)}): --help lists the options'
        )
    if getattr(model, 'in_channels', 3) != 3 or len(mean) != 3:
        raise UserError(
            f'{source} reads images of {getattr(model, "in_channels", len(mean))} channels: only models '
            'of RGB images can be analysed'
        )
    model.eval()  # not chained: mmpretrain's eval() returns None
    return AnalyzedModel(label, model.to(device), mean, std)


def _required(weights: str | None, source: str) -> str:
    if weights is None:
        raise UserError(f'{source} has no weights: add a checkpoint, or {RANDOM!r}')
    return weights


def _filled(model: nn.Module, weights: str) -> nn.Module:
    """Initialise or load the weights of a ``ConvNeXtV2``."""
    if weights == RANDOM:
        _initialise(model)
    else:
        load_backbone(model, weights)
    return model


def _initialise(model: nn.Module) -> None:
    """Initialise weights without mmengine's log line for each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def _load_config(path: str, weights: str) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    cfg = read_config(path)
    backbone = cfg.get('model', {}).get('backbone')
    if backbone is None:
        raise UserError(f'{path} has no model.backbone')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build({**backbone, 'init_cfg': None})
    if not isinstance(model, ConvNeXtV2):
        raise UserError(
            f'{path} has the backbone {type(model).__name__}: name models of mmpretrain and timm, or give '
            'a config of ConvNeXtV2'
        )
    pixels = read_normalization(cfg)
    return _filled(model, weights), pixels.mean or IMAGENET.mean, pixels.std or IMAGENET.std


def _load_file(path: str) -> nn.Module:
    """Build the ``ConvNeXtV2`` that a checkpoint belongs to."""
    weights = to_canonical(extract_state_dict(load_file(path)))
    try:
        return backbone_from_weights(weights, out_norm=False)
    except UserError as error:
        raise UserError(f'{path}: {error}; give the config it was trained with, LABEL CONFIG.py {path}') from error


def _load_mmpretrain(name: str, weights: str | None) -> nn.Module:
    mmpretrain = _import('mmpretrain')
    _check_name('mmpretrain', name, mmpretrain.list_models())
    model = mmpretrain.get_model(name, pretrained=weights is None)
    if not hasattr(model, 'backbone'):
        raise UserError(f'mmpretrain:{name} has no backbone')
    if weights is None:
        return model.backbone
    if weights == RANDOM:
        _initialise(model)
        return model.backbone
    content = extract_state_dict(load_file(weights))
    whole = {key.partition('backbone.')[2]: value for key, value in content.items() if key.startswith('backbone.')}
    load_strictly(model.backbone, whole or to_canonical(content), weights, ('norm',))
    return model.backbone


def _load_timm(name: str, weights: str | None) -> nn.Module:
    timm = _import('timm')
    _check_name('timm', name, timm.list_models() + timm.list_pretrained())
    model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    if weights not in (None, RANDOM):
        content = extract_state_dict(load_file(weights))
        if name.startswith('convnext'):
            content = _as_timm(content, model)
        load_strictly(model, content, weights, ('head.', 'norm.', 'fc_norm.'))
    return model


def _as_timm(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename ConvNeXt weights of any layout to the names of a timm model."""
    source, target = detect_layout(weights), detect_layout(model.state_dict())
    if source == target:
        return weights
    backbone = read_backbone_as(source, weights).weights
    return from_canonical({key: value for key, value in backbone.items() if not key.startswith('norm')}, target)


LIBRARIES = {'mmpretrain': _load_mmpretrain, 'timm': _load_timm}


def _import(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f'{package}: models need the package {package}, whose import failed: {error}') from error


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, 5, 0.4)
        raise UserError(f'{library} has no model {name!r}; similar names are {", ".join(near) or "none"}')
