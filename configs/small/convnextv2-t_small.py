# As convnextv2-a_small.py for the Tiny model, which needs a GPU.
_base_ = './convnextv2-a_small.py'
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.2, init_cfg=dict(checkpoint=_base_.sizes.tiny.im1k)),
    head=dict(in_channels=_base_.sizes.tiny.channels[3]))
