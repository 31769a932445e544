_base_ = '../_base_/fcmae_continue-300e.py'
model = dict(
    backbone=dict(arch='nano'), init_cfg=dict(type='FCMAEPretrained', checkpoint=_base_.sizes.nano.fcmae))
