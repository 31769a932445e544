_base_ = '../_base_/mask-rcnn_1x_lvis-v1.py'
# Published: none.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    neck=dict(in_channels=size.channels))
