_base_ = '../_base_/upernet_160k_ade20k_640.py'
# Published: none at this size.
size = _base_.sizes.large
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=size.im22k_384), **size.segmentation),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
