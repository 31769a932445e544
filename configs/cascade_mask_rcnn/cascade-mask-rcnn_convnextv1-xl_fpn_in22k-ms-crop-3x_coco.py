_base_ = ['../_base_/cascade-mask-rcnn_ms-crop-3x_coco.py', '../_base_/convnextv1.py']
# Published: 55.2 box AP, 47.7 mask AP (README of facebookresearch/ConvNeXt).
size = _base_.sizes_v1.xlarge
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.8, init_cfg=dict(checkpoint=size.in22k), **_base_.v1),
    neck=dict(in_channels=size.channels))
optim_wrapper = dict(optimizer=dict(lr=0.0001), paramwise_cfg=dict(decay_rate=0.7))
