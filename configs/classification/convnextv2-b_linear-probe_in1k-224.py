_base_ = '../_base_/linear_probe_imagenet.py'
# Published: none.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.fcmae)),
    head=dict(in_channels=size.channels[3]))
