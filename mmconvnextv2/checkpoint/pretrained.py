"""Strict loading of pretrained backbones, for models of any framework.

mmengine's ``Pretrained`` prints mismatches and continues, and reads canonical names only.
"""

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import initialize
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..models.convnext_v2 import INIT_CFG, ConvNeXtV2
from ..utils.errors import UserError
from .conversion import (
    ANCHOR,
    Backbone,
    has_grn,
    has_layer_scale,
    list_problems,
    preview,
    read_backbone,
    read_stem,
)
from .load import load_file
from .provenance import describe_provenance
from .state_dict import extract_state_dict
from .whole_model import with_canonical_backbone

GRN_CHANGES = {  # log message for each value of ``grn``, with its cost in the paper's table 2 (f), ConvNeXt-Base
    None: '',
    'drop': "grn='drop': {} weights of GRN are left out, as requested (published: 78.8 top-1 against 84.6 with it). ",
    'add': "grn='add': {} weights of GRN were not pretrained and start as the identity, as requested (published: 80.6 "
    'top-1 against 84.6 with it in pretraining). ',
}


def load_backbone(model: nn.Module, path: str, weights: str = 'default', grn: str | None = None) -> None:
    """Load a backbone from a file of any layout; nothing is loaded unless everything fits.

    Args:
        model (nn.Module): A ``ConvNeXtV2``.
        path (str): Local path, ``http(s)://`` or another of mmengine's file backends.
        weights (str): ``'ema'`` for the moving average in the file, ``'raw'`` for the trained weights stored next to
            it; see :func:`extract_state_dict`. Defaults to ``'default'``.
        grn (str, optional): ``'drop'`` loads weights with GRN into a model without it, ``'add'`` loads weights without
            GRN into a model whose GRN starts as the identity; the log warns. Defaults to None: both must agree.

    Raises:
        ValueError: If a weight other than an output norm is missing, unexpected or of a wrong shape, or if ``grn`` has
            nothing to change. Only the stem adapts, to another number of input channels.
    """
    load_into(model, _read(path, weights), path, grn)


def _read(path: str, weights: str = 'default') -> Backbone:
    """Read the backbone of a file, also of a whole detector or segmentor."""
    return read_backbone(with_canonical_backbone(extract_state_dict(load_file(path), weights)))


def load_into(model: nn.Module, found: Backbone, path: str, grn: str | None = None, log: bool = True) -> None:
    """Load a backbone that has been read from ``path``, and log what was loaded; see :func:`load_backbone`."""
    expected = model.state_dict()
    stem, note = _adapt_stem(found.weights[ANCHOR], expected[ANCHOR].shape[1])
    loaded = {**found.weights, ANCHOR: stem}
    changed = _changed_grn(grn, loaded, expected)
    dropped = changed + [key for key in loaded if key not in expected and key.startswith('norm')]
    required = {
        key: tuple(value.shape)
        for key, value in expected.items()
        if key in loaded or not (key.startswith('norm') or key in changed)
    }
    problems = list_problems({key: value for key, value in loaded.items() if key not in dropped}, required)
    if problems:
        raise UserError(
            f'{path} ({found.layout} layout) does not fit {type(model).__name__}: {problems}. '
            f'{_advice(found.weights, expected)}'
        )
    model.load_state_dict({key: loaded[key] for key in expected if key in loaded}, strict=False)
    if not log:
        return
    dropped = [key for key in dropped if key in loaded]
    print_log(
        f'{path}: {_summary(found, expected, dropped)}{GRN_CHANGES[grn].format(len(changed))}{note}'
        f'{describe_provenance(path, found)}',
        logger='current',
        level=logging.WARNING if grn else logging.INFO,
    )


def _changed_grn(change: str | None, loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the names of the response norm's weights that may be in the file or the model only.

    Raises:
        ValueError: If the change is unknown, or does not apply to this file and model.
    """
    check_grn_change(change)
    in_file = [key for key in loaded if '.grn.' in key]
    in_model = [key for key in expected if '.grn.' in key]
    if change is None:
        return []
    if change == 'drop' and (in_model or not in_file):
        raise UserError(
            f"grn='drop': the file has {len(in_file)} weights of GRN and the model {len(in_model)}; set "
            'response_norm=None for the model, and leave grn out where the file has none'
        )
    if change == 'add' and (in_file or not in_model):
        raise UserError(
            f"grn='add': the file has {len(in_file)} weights of GRN and the model {len(in_model)}; set "
            "response_norm=dict(type='GRN') for the model, and leave grn out where the file has it"
        )
    other = [key for key in in_file + in_model if not key.endswith(('.grn.gamma', '.grn.beta'))]
    if other:
        raise UserError(f'grn={change!r} changes only GRN, and {preview(other)} is of another response norm')
    odd = [key for key in in_model if expected[key].any()]
    if odd:
        raise UserError(
            f"grn='add' starts as the identity, which {preview(odd)} is not: set "
            "response_norm=dict(type='GRN') for a newly built model"
        )
    return in_file or in_model


def check_grn_change(change: str | None) -> None:
    """Raise ``ValueError`` for an unknown change."""
    if change not in GRN_CHANGES:
        raise UserError(f'grn={change!r} is unknown: choose from {list(GRN_CHANGES)}')


def _summary(found: Backbone, expected: dict[str, Tensor], dropped: list[str]) -> str:
    fresh = [key for key in expected if key not in found.weights]
    dropped = dropped + found.dropped
    return (
        f'{found.layout} layout, {len(expected) - len(fresh)} weights loaded, {len(fresh)} newly initialised '
        f'({preview(fresh) or "none"}), {len(dropped)} dropped ({preview(dropped) or "none"}). '
    )


def _advice(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return the overrides of a config that fit the model to a file's weights, as far as names show them."""
    stem = read_stem(weights)
    if stem != read_stem(expected):
        if stem is None:
            return 'The file has the stem of 4x4 patches: set model.backbone.stem=None.'
        name = "MMEarth's stem" if stem['type'] == 'ConvStem' else 'a stem of smaller patches'
        return (
            f'The file has {name}: set model.backbone.stem.type={stem["type"]} '
            f'model.backbone.stem.stride={stem["stride"]} model.backbone.in_channels={weights[ANCHOR].shape[1]}.'
        )
    is_v1 = has_layer_scale(weights) and not has_grn(weights)
    is_v2 = has_grn(weights) and not has_layer_scale(weights)
    if is_v1 and not (has_layer_scale(expected) and not has_grn(expected)):
        return (
            'The file holds ConvNeXt V1: set model.backbone.response_norm=None '
            'model.backbone.layer_scale_init_value=1e-6.'
        )
    if is_v2 and has_layer_scale(expected):
        return (
            'The file holds ConvNeXt V2: leave response_norm and layer_scale_init_value out, or set '
            'model.backbone.response_norm._delete_=True model.backbone.response_norm.type=GRN '
            'model.backbone.layer_scale_init_value=0.'
        )
    return "Check arch and response_norm; grn='add' or grn='drop' in init_cfg changes GRN on purpose."


def _adapt_stem(kernel: Tensor, channels: int) -> tuple[Tensor, str]:
    """Return the stem's kernel for another number of input channels, as timm adapts it, and a note for the log.

    For one channel the kernel is summed over channels, so a grey image gives the same output as its RGB copy gives in
    the original stem. For more channels the kernel's channels are repeated in turn, and rescaled to the same sum of
    weights.
    """
    old = kernel.shape[1]
    if old == channels:
        return kernel, ''
    if channels == 1:
        return kernel.sum(1, keepdim=True), f'The stem was summed from {old} to 1 input channel. '
    repeats = torch.arange(channels) % old
    note = f'The stem was repeated from {old} to {channels} input channels and rescaled. '
    return kernel[:, repeats] * (old / channels), note


@WEIGHT_INITIALIZERS.register_module()
class ConvNeXtV2Pretrained:
    """Initializer that loads a backbone: ``init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=PATH_OR_URL)``.

    Args:
        checkpoint (str): See :func:`load_backbone`.
        weights (str): ``'default'``, ``'ema'`` or ``'raw'``; see :func:`load_backbone`. Defaults to ``'default'``.
        grn (str, optional): ``'add'`` or ``'drop'``; see :func:`load_backbone`. Defaults to None.

    Raises:
        ValueError: If the checkpoint is empty, or ``grn`` is unknown.
    """

    def __init__(self, checkpoint: str, weights: str = 'default', grn: str | None = None) -> None:
        if not checkpoint:
            raise UserError(
                f'checkpoint={checkpoint!r} of ConvNeXtV2Pretrained: give a path or a URL, or set '
                'init_cfg=None to start from random weights'
            )
        self.checkpoint = checkpoint
        check_grn_change(grn)
        self.weights = weights
        self.grn = grn

    def __call__(self, module: nn.Module) -> None:
        load_backbone(module, self.checkpoint, self.weights, self.grn)
        init_info = f'{type(self).__name__}: {self.checkpoint}'
        for record in getattr(module, '_params_init_info', {}).values():
            record['init_info'] = init_info


def create_backbone(
    arch: str | dict = 'tiny', weights: str | None = None, in_channels: int = 3, **kwargs: Any
) -> ConvNeXtV2:
    """Create a backbone for code outside OpenMMLab, without a registry and without a log line.

    Args:
        arch (str | dict): A size of ``ARCHS``, such as ``'base'``, or depths and channels. Defaults to ``'tiny'``.
        weights (str, optional): Path or URL of weights in any known layout. Defaults to None, random weights.
        in_channels (int): Channels of the images; the stem of weights for another number is adapted. Defaults to 3.
        kwargs: Other arguments of :class:`ConvNeXtV2`, such as ``out_indices`` and ``drop_path_rate``.

    Returns:
        ConvNeXtV2: In evaluation mode. Called with images (B, C, H, W), normalised as in training (ImageNet's mean and
        deviation of RGB), it returns one map (B, C_i, H / s, W / s) per index in ``out_indices``, s = 4, 8, 16, 32.

    Raises:
        ValueError: If the size is unknown, or the weights are of another one.

    Examples:
        >>> backbone = mmconvnextv2.create_backbone('base', weights='convnextv2_base_1k_224_ema.pt')
        >>> [tuple(one.shape[1:]) for one in backbone(torch.rand(1, 3, 224, 224))]
        [(128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    """
    model = ConvNeXtV2(arch, in_channels, **kwargs)
    if weights is None:
        initialize(model, dict(INIT_CFG))  # init_weights would log every parameter
    else:
        load_into(model, _read(weights), weights, log=False)
    return model.eval()
