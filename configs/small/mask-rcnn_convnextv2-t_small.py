# As mask-rcnn_convnextv2-a_small.py for the Tiny model with heads of the usual width, which needs a GPU.
_base_ = './mask-rcnn_convnextv2-a_small.py'
channels = 256
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=_base_.sizes.tiny.im1k)),
    neck=dict(in_channels=_base_.sizes.tiny.channels, out_channels=channels, norm_cfg=None),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=1024),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=4, norm_cfg=None)))
