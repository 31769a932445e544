_base_ = '../_base_/mask-rcnn_lsj-3x_coco.py'
# Published: none at this size.
size = _base_.sizes.pico
# Starts from raw FCMAE weights; checkpoint=size.im1k starts from fine-tuned ones.
model = dict(
    backbone=dict(arch='pico', init_cfg=dict(checkpoint=size.fcmae), **size.detection),
    neck=dict(in_channels=size.channels))
