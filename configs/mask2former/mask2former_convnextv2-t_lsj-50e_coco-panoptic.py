_base_ = '../_base_/mask2former_lsj-50e_coco-panoptic.py'
# Published: none with this backbone.
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    panoptic_head=dict(in_channels=size.channels))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=size.layer_decay))
