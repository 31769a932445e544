_base_ = '../_base_/faster-rcnn_voc0712.py'
# Published: none.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    neck=dict(in_channels=size.channels))
