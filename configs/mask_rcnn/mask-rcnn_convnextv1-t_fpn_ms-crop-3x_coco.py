_base_ = ['../_base_/mask-rcnn_ms-crop-3x_coco.py', '../_base_/convnextv1.py']
# Published: 46.2 box AP, 41.7 mask AP (README of facebookresearch/ConvNeXt).
size = _base_.sizes_v1.tiny
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.4, init_cfg=dict(checkpoint=size.in1k), **_base_.v1),
    neck=dict(in_channels=size.channels))
