_base_ = '../_base_/cascade-mask-rcnn_fcmae_ms-crop-3x_coco.py'
# Published: none.
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.fcmae), **size.detection),
    neck=dict(in_channels=size.channels))
