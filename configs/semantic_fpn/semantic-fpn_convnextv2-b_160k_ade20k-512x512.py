_base_ = '../_base_/semantic-fpn_160k_ade20k.py'
# Published: none.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.im1k), **size.segmentation),
    neck=dict(in_channels=size.channels))
