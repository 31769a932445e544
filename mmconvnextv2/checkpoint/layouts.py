"""One table per layout of ConvNeXt weights: the foreign name of each weight, its canonical name and its reshape.

Canonical names and shapes are those of mmpretrain's ``ConvNeXt(use_grn=True)``. The other layouts are those of the
official repositories of ConvNeXt V1 and V2, timm, Hugging Face, OpenCLIP, DINOv3 and EUPE, MMEarth, and SparK,
described from their files and models without use of their code. ``gamma``, LayerScale, belongs to ConvNeXt V1. In the
shapes below, C stands for channels, I and O for input and output channels, k for a kernel's side.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..utils.moved import moved_names


class Reshape(NamedTuple):
    """Functions from the foreign shape to the canonical one and back; they move values and never change them."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


ROW = Reshape(_flat, lambda vector: vector.reshape(1, -1))  # (1, C)
ONES_FIRST = Reshape(_flat, lambda vector: vector.reshape(1, 1, 1, -1))  # (1, 1, 1, C); (C,) and (1, C) are read, too
ONE_SITE = Reshape(_flat, lambda vector: vector.reshape(1, -1, 1, 1))  # (1, C, 1, 1)
CONV_1X1 = Reshape(lambda weight: weight.flatten(1), lambda weight: weight[..., None, None])  # (O, I, 1, 1) to (O, I)
DEPTHWISE = Reshape(  # (k * k, C), row kw * k + kh, to (C, 1, k, k)
    lambda kernel: kernel.reshape(*_sides(kernel), -1).permute(2, 1, 0).unsqueeze(1).contiguous(),
    lambda weight: weight.squeeze(1).permute(2, 1, 0).reshape(-1, len(weight)).contiguous(),
)
CONV = Reshape(  # (k * k, I, O), plane kw * k + kh, to (O, I, k, k)
    lambda kernel: kernel.reshape(*_sides(kernel), *kernel.shape[1:]).permute(3, 2, 1, 0).contiguous(),
    lambda weight: weight.permute(3, 2, 1, 0).reshape(-1, *weight.shape[1::-1]).contiguous(),
)


def _sides(kernel: Tensor) -> tuple[int, int]:
    """Return the sides (k, k) of a sparse kernel, whose first axis has k * k rows."""
    side = math.isqrt(kernel.shape[0])
    return side, side


class Rule(NamedTuple):
    """One row of a table.

    In names, ``{s}`` matches a stage, ``{b}`` a block, ``{d}`` a downsampling layer 1 to 3 and ``{any}`` the rest of a
    name. ``canonical=None`` marks a key that is dropped on purpose. ``copy_of`` names another foreign key whose values
    a dropped key repeats: they must agree, and both are written.
    """

    foreign: str
    canonical: str | None
    reshape: Reshape | None = None
    copy_of: str | None = None


def _both(foreign: str, canonical: str | None) -> list[Rule]:
    """Return the rules of a weight and its bias, which keep their shapes."""
    return [Rule(f'{foreign}.{leaf}', canonical and f'{canonical}.{leaf}') for leaf in ('weight', 'bias')]


OFFICIAL_DENSE = [
    *_both('downsample_layers.0.0', 'downsample_layers.0.0'),
    *_both('downsample_layers.0.1', 'downsample_layers.0.1'),
    *_both('downsample_layers.{d}.0', 'downsample_layers.{d}.0'),
    *_both('downsample_layers.{d}.1', 'downsample_layers.{d}.1'),
    *_both('stages.{s}.{b}.dwconv', 'stages.{s}.{b}.depthwise_conv'),
    *_both('stages.{s}.{b}.norm', 'stages.{s}.{b}.norm'),
    *_both('stages.{s}.{b}.pwconv1', 'stages.{s}.{b}.pointwise_conv1'),
    Rule('stages.{s}.{b}.grn.gamma', 'stages.{s}.{b}.grn.gamma', ONES_FIRST),
    Rule('stages.{s}.{b}.grn.beta', 'stages.{s}.{b}.grn.beta', ONES_FIRST),
    *_both('stages.{s}.{b}.pwconv2', 'stages.{s}.{b}.pointwise_conv2'),
    Rule('stages.{s}.{b}.gamma', 'stages.{s}.{b}.gamma'),  # LayerScale of ConvNeXt V1
    *_both('norm', 'norm3'),
    *_both('head', None),
]
OFFICIAL_V1 = [rule for rule in OFFICIAL_DENSE if '.grn.' not in rule.foreign and not rule.foreign.startswith('head')]
# DINOv3's ConvNeXt, and EUPE's, whose model code is DINOv3's: V1 without head, its final norm in the file twice
DINOV3 = [
    *OFFICIAL_V1,
    *[Rule(f'norms.3.{leaf}', None, copy_of=f'norm.{leaf}') for leaf in ('weight', 'bias')],
    Rule('projectors.{any}', None),  # EUPE's distillation
]
# Encoder of a checkpoint of the official pretraining script, in the order of its parameters
SPARSE_ENCODER = [
    *_both('encoder.downsample_layers.0.0', 'downsample_layers.0.0'),
    *_both('encoder.downsample_layers.0.1', 'downsample_layers.0.1'),
    *_both('encoder.downsample_layers.{d}.0.ln', 'downsample_layers.{d}.0'),
    Rule('encoder.downsample_layers.{d}.1.kernel', 'downsample_layers.{d}.1.weight', CONV),
    Rule('encoder.downsample_layers.{d}.1.bias', 'downsample_layers.{d}.1.bias', ROW),
    Rule('encoder.stages.{s}.{b}.dwconv.kernel', 'stages.{s}.{b}.depthwise_conv.weight', DEPTHWISE),
    Rule('encoder.stages.{s}.{b}.dwconv.bias', 'stages.{s}.{b}.depthwise_conv.bias', ROW),
    *_both('encoder.stages.{s}.{b}.norm.ln', 'stages.{s}.{b}.norm'),
    *_both('encoder.stages.{s}.{b}.pwconv1.linear', 'stages.{s}.{b}.pointwise_conv1'),
    *_both('encoder.stages.{s}.{b}.pwconv2.linear', 'stages.{s}.{b}.pointwise_conv2'),
    Rule('encoder.stages.{s}.{b}.grn.gamma', 'stages.{s}.{b}.grn.gamma', ROW),
    Rule('encoder.stages.{s}.{b}.grn.beta', 'stages.{s}.{b}.grn.beta', ROW),
]
OFFICIAL_SPARSE = [
    *SPARSE_ENCODER,
    Rule('mask_token', None),
    Rule('proj.{any}', None),
    Rule('decoder.{any}', None),
    Rule('pred.{any}', None),
]
# The whole model of such a checkpoint, under the names of our FCMAE
PRETRAINING = [
    Rule('mask_token', 'neck.mask_token', ONE_SITE),
    *[rule._replace(canonical=f'backbone.{rule.canonical}') for rule in SPARSE_ENCODER],
    *_both('proj', 'neck.proj'),
    *_both('decoder.{b}.dwconv', 'neck.blocks.{b}.depthwise_conv'),
    *_both('decoder.{b}.norm', 'neck.blocks.{b}.norm'),
    *_both('decoder.{b}.pwconv1', 'neck.blocks.{b}.pointwise_conv1'),
    Rule('decoder.{b}.grn.gamma', 'neck.blocks.{b}.grn.gamma', ONES_FIRST),
    Rule('decoder.{b}.grn.beta', 'neck.blocks.{b}.grn.beta', ONES_FIRST),
    *_both('decoder.{b}.pwconv2', 'neck.blocks.{b}.pointwise_conv2'),
    Rule('pred.weight', 'head.pred.weight', CONV_1X1),
    Rule('pred.bias', 'head.pred.bias'),
]
# MMEarth: the first downsampling layer is called stem, so the others count from 0
_LATER_DOWNSAMPLING = [(layer - 1, layer) for layer in (1, 2, 3)]
MMEARTH_DENSE = [
    *_both('initial_conv.0', 'downsample_layers.0.0'),
    *_both('initial_conv.1', 'downsample_layers.0.1'),
    *_both('stem.0', 'downsample_layers.0.3'),
    *_both('stem.1', 'downsample_layers.0.4'),
    *[
        rule
        for old, new in _LATER_DOWNSAMPLING
        for part in (0, 1)
        for rule in _both(f'downsample_layers.{old}.{part}', f'downsample_layers.{new}.{part}')
    ],
    *[
        rule
        for rule in OFFICIAL_DENSE
        if not rule.foreign.startswith('downsample_layers.') and rule.foreign != 'stages.{s}.{b}.gamma'
    ],
]
MMEARTH = [  # a checkpoint of its pretraining script
    Rule('encoder.initial_conv.0.kernel', 'downsample_layers.0.0.weight', CONV),
    Rule('encoder.initial_conv.0.bias', 'downsample_layers.0.0.bias', ROW),
    *_both('encoder.initial_conv.1.ln', 'downsample_layers.0.1'),
    Rule('encoder.stem.0.kernel', 'downsample_layers.0.3.weight', DEPTHWISE),
    Rule('encoder.stem.0.bias', 'downsample_layers.0.3.bias', ROW),
    *_both('encoder.stem.1.ln', 'downsample_layers.0.4'),
    *[
        rule
        for old, new in _LATER_DOWNSAMPLING
        for rule in (
            *_both(f'encoder.downsample_layers.{old}.0.ln', f'downsample_layers.{new}.0'),
            Rule(f'encoder.downsample_layers.{old}.1.kernel', f'downsample_layers.{new}.1.weight', CONV),
            Rule(f'encoder.downsample_layers.{old}.1.bias', f'downsample_layers.{new}.1.bias', ROW),
        )
    ],
    *[rule for rule in SPARSE_ENCODER if rule.foreign.startswith('encoder.stages.')],
    *[
        Rule(name, None)
        for name in ('mask_token', 'proj.{any}', 'decoder_dict.{any}', 'pred_dict.{any}', 'layer_norm_tmp.{any}')
    ],
    Rule('loss_fn.{any}', None),  # uncertainties of the tasks
]
SPARK = [  # a checkpoint of SparK's pretraining script; its released encoders are official-dense
    *[rule._replace(foreign=f'sparse_encoder.sp_cnn.{rule.foreign}') for rule in OFFICIAL_V1],
    *_both('sparse_encoder.sp_cnn.fc', None),
    *[Rule(f'{name}.{{any}}', None) for name in ('dense_decoder', 'densify_norms', 'densify_projs', 'mask_tokens')],
    *[Rule(name, None) for name in ('imn_m', 'imn_s', 'norm_black', 'config')],
]
TIMM = [
    *_both('stem.0', 'downsample_layers.0.0'),
    *_both('stem.1', 'downsample_layers.0.1'),
    *_both('stages.{d}.downsample.0', 'downsample_layers.{d}.0'),
    *_both('stages.{d}.downsample.1', 'downsample_layers.{d}.1'),
    *_both('stages.{s}.blocks.{b}.conv_dw', 'stages.{s}.{b}.depthwise_conv'),
    *_both('stages.{s}.blocks.{b}.norm', 'stages.{s}.{b}.norm'),
    *_both('stages.{s}.blocks.{b}.mlp.fc1', 'stages.{s}.{b}.pointwise_conv1'),
    Rule('stages.{s}.blocks.{b}.mlp.grn.weight', 'stages.{s}.{b}.grn.gamma'),
    Rule('stages.{s}.blocks.{b}.mlp.grn.bias', 'stages.{s}.{b}.grn.beta'),
    *_both('stages.{s}.blocks.{b}.mlp.fc2', 'stages.{s}.{b}.pointwise_conv2'),
    Rule('stages.{s}.blocks.{b}.gamma', 'stages.{s}.{b}.gamma'),
    *_both('head.norm', 'norm3'),
    *_both('norm_pre', 'norm3'),  # head_norm_first: before pooling
    *_both('head.pre_logits.fc', None),
    *_both('head.fc', None),
]
TIMM_CONV = [  # timm's atto, femto, pico and nano have 1x1 convolutions instead of linear layers
    rule._replace(reshape=CONV_1X1) if rule.foreign.endswith(('fc1.weight', 'fc2.weight')) else rule for rule in TIMM
]
OPENCLIP = [  # the image tower of a CLIP model, and everything else in its file
    *[rule._replace(foreign=f'visual.trunk.{rule.foreign}') for rule in TIMM if '.grn.' not in rule.foreign],
    Rule('visual.head.{any}', None),
    *[Rule(f'{name}.{{any}}', None) for name in ('text', 'transformer', 'token_embedding', 'ln_final')],
    *[
        Rule(name, None)
        for name in ('positional_embedding', 'text_projection', 'attn_mask', 'logit_scale', 'logit_bias')
    ],
]
HUGGING_FACE = [
    *_both('embeddings.patch_embeddings', 'downsample_layers.0.0'),
    *_both('embeddings.layernorm', 'downsample_layers.0.1'),
    *_both('encoder.stages.{d}.downsampling_layer.0', 'downsample_layers.{d}.0'),
    *_both('encoder.stages.{d}.downsampling_layer.1', 'downsample_layers.{d}.1'),
    *_both('encoder.stages.{s}.layers.{b}.dwconv', 'stages.{s}.{b}.depthwise_conv'),
    *_both('encoder.stages.{s}.layers.{b}.layernorm', 'stages.{s}.{b}.norm'),
    *_both('encoder.stages.{s}.layers.{b}.pwconv1', 'stages.{s}.{b}.pointwise_conv1'),
    Rule('encoder.stages.{s}.layers.{b}.grn.weight', 'stages.{s}.{b}.grn.gamma', ONES_FIRST),
    Rule('encoder.stages.{s}.layers.{b}.grn.bias', 'stages.{s}.{b}.grn.beta', ONES_FIRST),
    *_both('encoder.stages.{s}.layers.{b}.pwconv2', 'stages.{s}.{b}.pointwise_conv2'),
    Rule('encoder.stages.{s}.layers.{b}.layer_scale_parameter', 'stages.{s}.{b}.gamma'),  # ConvNext
    *_both('layernorm', 'norm3'),
    *_both('classifier', None),
]
HUGGING_FACE_BACKBONE = [  # ConvNextV2Backbone, with one norm per returned map
    *[rule for rule in HUGGING_FACE if rule.foreign.startswith(('embeddings', 'encoder'))],
    *[rule for stage in range(4) for rule in _both(f'hidden_states_norms.stage{stage + 1}', f'norm{stage}')],
    *_both('hidden_states_norms.stem', None),
]
HUGGING_FACE_DINOV3 = [
    *_both('stages.{s}.downsample_layers.0', 'downsample_layers.{s}.0'),
    *_both('stages.{s}.downsample_layers.1', 'downsample_layers.{s}.1'),
    *_both('stages.{s}.layers.{b}.depthwise_conv', 'stages.{s}.{b}.depthwise_conv'),
    *_both('stages.{s}.layers.{b}.layer_norm', 'stages.{s}.{b}.norm'),
    *_both('stages.{s}.layers.{b}.pointwise_conv1', 'stages.{s}.{b}.pointwise_conv1'),
    *_both('stages.{s}.layers.{b}.pointwise_conv2', 'stages.{s}.{b}.pointwise_conv2'),
    Rule('stages.{s}.layers.{b}.gamma', 'stages.{s}.{b}.gamma'),
    *_both('layer_norm', 'norm3'),
]
LAYOUTS: dict[str, Sequence[Rule]] = {
    'official-dense': OFFICIAL_DENSE,
    'official-sparse': OFFICIAL_SPARSE,
    'timm': TIMM,
    'timm-conv': TIMM_CONV,
    'huggingface': HUGGING_FACE,
    'huggingface-backbone': HUGGING_FACE_BACKBONE,
    'huggingface-dinov3': HUGGING_FACE_DINOV3,
    'openclip': OPENCLIP,
    'dinov3': DINOV3,
    'mmearth': MMEARTH,
    'mmearth-dense': MMEARTH_DENSE,
    'spark': SPARK,
}
CLASSIFIERS = {  # the classifying layer, and the prefix of the backbone's keys in a whole classifier
    'canonical': ('head.fc', 'backbone.'),
    'official-dense': ('head', ''),
    'timm': ('head.fc', ''),
    'timm-conv': ('head.fc', ''),
    'huggingface': ('classifier', 'convnextv2.'),
}
SIGNATURES = {  # a key that only this layout has
    'canonical': re.compile(r'(.*\.)?stages\.\d\.\d+\.depthwise_conv\.weight'),
    'official-dense': re.compile(r'stages\.\d\.\d+\.dwconv\.weight'),
    'official-sparse': re.compile(r'encoder\.stages\.\d\.\d+\.dwconv\.kernel'),
    'timm': re.compile(r'stages\.\d\.blocks\.\d+\.conv_dw\.weight'),
    'huggingface': re.compile(r'encoder\.stages\.\d\.layers\.\d+\.dwconv\.weight'),
    'huggingface-dinov3': re.compile(r'stages\.\d\.layers\.\d+\.depthwise_conv\.weight'),
    'openclip': re.compile(r'visual\.trunk\.stages\.\d\.blocks\.\d+\.conv_dw\.weight'),
    'spark': re.compile(r'sparse_encoder\.sp_cnn\.stages\.\d\.\d+\.dwconv\.weight'),
}
VARIANTS = {  # layouts that share the signature of another one, and a key that only they have
    'official-dense': {
        'dinov3': re.compile(r'(norms\.3|projectors)\..+'),
        'mmearth-dense': re.compile(r'(initial_conv|stem|stem_orig)\..+'),
    },
    'official-sparse': {'mmearth': re.compile(r'encoder\.(initial_conv|stem|stem_orig)\..+')},
    'huggingface': {'huggingface-backbone': re.compile(r'hidden_states_norms\..+')},
}
SPELLINGS = [  # prefixes that wrappers, classifiers and timm's features_only add to the same names
    (re.compile(r'^(module\.|_orig_mod\.)+'), ''),  # DistributedDataParallel, moving averages, torch.compile
    (re.compile(r'^convnext(v2)?\.'), ''),  # Hugging Face's classifiers
    (re.compile(r'^model\.(?=stages\.\d\.(layers|downsample_layers)\.)'), ''),  # DINOv3 in transformers 5
    (re.compile(r'^(stem|stages)_(\d)\.'), r'\1.\2.'),
]


__getattr__ = moved_names(__name__)
