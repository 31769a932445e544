_base_ = '../_base_/faster-rcnn_1x_coco.py'
# Published: none.
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    neck=dict(in_channels=size.channels))
