# Tiny with heads of the usual width, for a GPU.
_base_ = '../_base_/upernet_small.py'
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k)),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
