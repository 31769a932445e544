# As upernet_convnextv2-a_small.py for the Tiny model with heads of the usual width, which needs a GPU.
_base_ = './upernet_convnextv2-a_small.py'
channels = 512
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=_base_.sizes.tiny.im1k)),
    decode_head=dict(in_channels=_base_.sizes.tiny.channels, channels=channels),
    auxiliary_head=dict(in_channels=_base_.sizes.tiny.channels[2], channels=256))
