_base_ = ['../_base_/upernet_160k_ade20k_640.py', '../_base_/convnextv1.py']
# Published: 53.2 mIoU, 53.7 mIoU (multi-scale) (README of facebookresearch/ConvNeXt).
size = _base_.sizes_v1.large
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.4, init_cfg=dict(checkpoint=size.in22k), **_base_.v1),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
optim_wrapper = dict(paramwise_cfg=dict(decay_type='stage_wise'))
