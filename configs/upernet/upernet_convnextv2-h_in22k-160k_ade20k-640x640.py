_base_ = '../_base_/upernet_160k_ade20k_640.py'
# Published: 57.0 mIoU (multi-scale; arXiv 2301.00808, table 7).
size = _base_.sizes.huge
model = dict(
    backbone=dict(arch='huge', init_cfg=dict(checkpoint=size.im22k_512), **size.segmentation),
    decode_head=dict(in_channels=size.channels),
    auxiliary_head=dict(in_channels=size.channels[2]))
