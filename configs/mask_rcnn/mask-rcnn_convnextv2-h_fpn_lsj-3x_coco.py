_base_ = '../_base_/mask-rcnn_lsj-3x_coco.py'
# Published: 55.7 box AP, 48.9 mask AP from FCMAE (arXiv 2301.00808, table 6).
size = _base_.sizes.huge
# Starts from raw FCMAE weights; checkpoint=size.im1k starts from fine-tuned ones.
model = dict(
    backbone=dict(arch='huge', init_cfg=dict(checkpoint=size.fcmae), **size.detection),
    neck=dict(in_channels=size.channels))
