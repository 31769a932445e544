_base_ = ['../_base_/mask-rcnn_ms-crop-3x_coco.py', '../_base_/convnextv1.py']
# Published: none; rate and decay of the published T, drop path of the published Cascade of this size.
size = _base_.sizes_v1.xlarge
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.8, init_cfg=dict(checkpoint=size.in22k), **_base_.v1),
    neck=dict(in_channels=size.channels))
