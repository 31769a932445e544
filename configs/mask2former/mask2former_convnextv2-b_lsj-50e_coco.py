_base_ = '../_base_/mask2former_lsj-50e_coco.py'
# Published: none with this backbone.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    panoptic_head=dict(in_channels=size.channels))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=size.layer_decay))
