_base_ = '../_base_/ddq-detr_4scale-12e_coco.py'
# Published: none with this backbone.
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    neck=dict(in_channels=size.channels[1:]))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=size.layer_decay))
