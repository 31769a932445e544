# As mask-rcnn_convnextv2-a_small.py for the Tiny model with heads of the usual width, which needs a GPU.
_base_ = './mask-rcnn_convnextv2-a_small.py'
channels = 256
image_size = (640, 640)
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=_base_.sizes.tiny.im1k)),
    neck=dict(in_channels=_base_.sizes.tiny.channels, out_channels=channels, norm_cfg=None),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=1024),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=4, norm_cfg=None)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=1000), rcnn=dict(sampler=dict(num=256))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000)))
resize = dict(_base_.resize, scale=image_size)
crop = dict(_base_.crop, crop_size=image_size)
test_resize = dict(_base_.test_resize, scale=image_size)
train_pipeline = [
    _base_.load, _base_.annotations, resize, crop, _base_.filtered, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.annotations, _base_.test_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
