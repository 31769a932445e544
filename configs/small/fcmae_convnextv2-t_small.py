# As fcmae_convnextv2-a_small.py for the Tiny model, which needs a GPU.
_base_ = './fcmae_convnextv2-a_small.py'
model = dict(backbone=dict(arch='tiny', init_cfg=dict(checkpoint=_base_.sizes.tiny.fcmae)))
