# Atto for a laptop: minutes on two CPU cores.
_base_ = '../_base_/classifier_small.py'
size = _base_.sizes.atto
model = dict(
    backbone=dict(arch='atto', init_cfg=dict(checkpoint=size.im1k)), head=dict(in_channels=size.channels[3]))
