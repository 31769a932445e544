_base_ = '../_base_/upernet_160k_ade20k.py'
# Published: none at this size.
size = _base_.sizes.nano
model = dict(
    backbone=dict(arch='nano', init_cfg=dict(checkpoint=size.im1k), **size.segmentation),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
