_base_ = '../_base_/mask-rcnn_1x_coco.py'
# Published: none. Starts from fine-tuned weights.
size = _base_.sizes.nano
model = dict(
    backbone=dict(arch='nano', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    neck=dict(in_channels=size.channels))
