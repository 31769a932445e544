_base_ = '../_base_/linear_probe_imagenet.py'
# Published: none.
size = _base_.sizes.atto
model = dict(
    backbone=dict(arch='atto', init_cfg=dict(checkpoint=size.fcmae)),
    head=dict(in_channels=size.channels[3]))
