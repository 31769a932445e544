"""One table per layout of ConvNeXt V2 weights: the foreign name of each weight, its canonical name and its reshape.

Canonical names and shapes are those of mmpretrain's ``ConvNeXt(use_grn=True)``. The other layouts are the official
repository's dense and sparse files, timm's ``convnextv2_*`` and Hugging Face's ``ConvNextV2``, described from their
files without use of their code. In the shapes below, C stands for channels, I and O for input and output channels.
"""

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
DEPTHWISE = Reshape(  # (49, C), row kw * 7 + kh, to (C, 1, 7, 7)
    lambda kernel: kernel.reshape(7, 7, -1).permute(2, 1, 0).unsqueeze(1).contiguous(),
    lambda weight: weight.squeeze(1).permute(2, 1, 0).reshape(49, -1).contiguous(),
)
DOWNSAMPLE = Reshape(  # (4, I, O), plane kw * 2 + kh, to (O, I, 2, 2)
    lambda kernel: kernel.reshape(2, 2, *kernel.shape[1:]).permute(3, 2, 1, 0).contiguous(),
    lambda weight: weight.permute(3, 2, 1, 0).reshape(4, *weight.shape[1::-1]).contiguous(),
)


class Rule(NamedTuple):
    """One row of a table.

    In names, ``{s}`` matches a stage, ``{b}`` a block, ``{d}`` a downsampling layer 1 to 3 and ``{any}`` the rest of a
    name. ``canonical=None`` marks a key that is dropped on purpose.
    """

    foreign: str
    canonical: str | None
    reshape: Reshape | None = None


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
# Encoder of a checkpoint of the official pretraining script, in the order of its parameters
SPARSE_ENCODER = [
    *_both('encoder.downsample_layers.0.0', 'downsample_layers.0.0'),
    *_both('encoder.downsample_layers.0.1', 'downsample_layers.0.1'),
    *_both('encoder.downsample_layers.{d}.0.ln', 'downsample_layers.{d}.0'),
    Rule('encoder.downsample_layers.{d}.1.kernel', 'downsample_layers.{d}.1.weight', DOWNSAMPLE),
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
    *_both('head.fc', None),
]
TIMM_CONV = [  # timm's atto, femto, pico and nano have 1x1 convolutions instead of linear layers
    rule._replace(reshape=CONV_1X1) if rule.foreign.endswith(('fc1.weight', 'fc2.weight')) else rule for rule in TIMM
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
    *_both('layernorm', 'norm3'),
    *_both('classifier', None),
]
HUGGING_FACE_BACKBONE = [  # ConvNextV2Backbone, with one norm per returned map
    *[rule for rule in HUGGING_FACE if rule.foreign.startswith(('embeddings', 'encoder'))],
    *[rule for stage in range(4) for rule in _both(f'hidden_states_norms.stage{stage + 1}', f'norm{stage}')],
    *_both('hidden_states_norms.stem', None),
]
LAYOUTS: dict[str, Sequence[Rule]] = {
    'official-dense': OFFICIAL_DENSE,
    'official-sparse': OFFICIAL_SPARSE,
    'timm': TIMM,
    'timm-conv': TIMM_CONV,
    'huggingface': HUGGING_FACE,
    'huggingface-backbone': HUGGING_FACE_BACKBONE,
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
}
SPELLINGS = [  # prefixes that wrappers, classifiers and timm's features_only add to the same names
    (re.compile(r'^(module\.|_orig_mod\.)+'), ''),  # DistributedDataParallel, moving averages, torch.compile
    (re.compile(r'^convnextv2\.'), ''),
    (re.compile(r'^(stem|stages)_(\d)\.'), r'\1.\2.'),
]


__getattr__ = moved_names(__name__)
