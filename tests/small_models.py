"""Small models that tests of several folders build."""

import torch
from torch import nn

NARROW = dict(depths=(1, 1, 2, 1), channels=(4, 6, 8, 10))  # two blocks in one stage, another width in each
# Settings of the backbones that layouts have a place for, and these layouts
V1 = dict(response_norm=None, layer_scale_init_value=1.0)
MMEARTH = dict(in_channels=12, stem=dict(type='ConvStem', stride=2))
OLDER = ('official-dense', 'timm', 'timm-conv', 'huggingface', 'huggingface-backbone')  # V1 and V2
FAMILIES = dict(
    v2=({}, (*OLDER, 'official-sparse')),
    v1=(V1, (*OLDER, 'huggingface-dinov3', 'openclip', 'dinov3', 'spark')),
    mmearth=(MMEARTH, ('mmearth', 'mmearth-dense')),
)


def settings_of(layout):
    """Settings of a backbone that a layout has a place for."""
    return next((settings for settings, layouts in FAMILIES.values() if layout in layouts), {})


def make_fcmae(in_channels=3, **kwargs):
    """Return a float64 FCMAE of the narrow backbone, with every parameter random."""
    from mmconvnextv2.pretrain import FCMAE

    torch.manual_seed(0)
    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch=NARROW, in_channels=in_channels, out_indices=(3,), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=12),
        head=dict(type='FCMAEHead'),
        **kwargs,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
