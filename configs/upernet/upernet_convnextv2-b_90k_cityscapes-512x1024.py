_base_ = '../_base_/upernet_90k_cityscapes.py'
# Published: none.
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=size.im1k), **size.segmentation),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
