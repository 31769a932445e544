# Atto with narrow heads for a laptop: about 20 minutes on two CPU cores.
_base_ = '../_base_/upernet_small.py'
size = _base_.sizes.atto
channels = 64
model = dict(
    backbone=dict(init_cfg=dict(checkpoint=size.im1k)),
    decode_head=dict(in_channels=size.channels, channels=channels),
    auxiliary_head=dict(in_channels=size.channels[2], channels=channels))
