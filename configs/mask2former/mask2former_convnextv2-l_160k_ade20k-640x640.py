_base_ = '../_base_/mask2former_160k_ade20k-640x640.py'
# Published: none with this backbone.
size = _base_.sizes.large
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=size.im1k), **size.segmentation),
    decode_head=dict(in_channels=size.channels))
