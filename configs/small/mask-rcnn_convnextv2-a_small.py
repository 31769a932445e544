# Atto with narrow heads for a laptop: under 30 minutes on two CPU cores.
_base_ = '../_base_/mask-rcnn_small.py'
size = _base_.sizes.atto
channels = 64
norm = dict(type='GN', num_groups=16)  # batches are too small for BN
model = dict(
    backbone=dict(init_cfg=dict(checkpoint=size.im1k)),
    neck=dict(in_channels=size.channels, out_channels=channels, norm_cfg=norm),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=512),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=2, norm_cfg=norm)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=1000, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))
