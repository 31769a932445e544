_base_ = '../_base_/mask2former_160k_ade20k-512x512.py'
# Published: none with this backbone.
size = _base_.sizes.tiny
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k), **size.segmentation),
    decode_head=dict(in_channels=size.channels))
