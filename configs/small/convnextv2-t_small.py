# Tiny, for a GPU.
_base_ = '../_base_/classifier_small.py'
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint=size.im1k)),
    head=dict(in_channels=size.channels[3]))
