_base_ = '../_base_/cascade-mask-rcnn_fcmae_ms-crop-3x_coco.py'
# Published: none.
size = _base_.sizes.large
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=size.fcmae), **size.detection),
    neck=dict(in_channels=size.channels))
