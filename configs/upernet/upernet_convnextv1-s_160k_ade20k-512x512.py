_base_ = ['../_base_/upernet_160k_ade20k.py', '../_base_/convnextv1.py']
# Published: 48.7 mIoU, 49.6 mIoU (multi-scale) (README of facebookresearch/ConvNeXt).
size = _base_.sizes_v1.small
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.3, init_cfg=dict(checkpoint=size.in1k), **_base_.v1),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
optim_wrapper = dict(paramwise_cfg=dict(decay_type='stage_wise'))
