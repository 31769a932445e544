_base_ = '../_base_/mask-rcnn_lsj-3x_coco.py'
# Published: 52.9 box AP, 46.6 mask AP from FCMAE (arXiv 2301.00808, table 6).
size = _base_.sizes.base
# Starts from raw FCMAE weights; checkpoint=size.im1k starts from fine-tuned ones.
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.fcmae), **size.detection),
    neck=dict(in_channels=size.channels))
