# Tiny with heads of the usual width and larger images, for a GPU.
_base_ = '../_base_/mask-rcnn_small.py'
size = _base_.sizes.tiny
image_size = (640, 640)
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint=size.im1k)), neck=dict(in_channels=size.channels))
resize = dict(_base_.resize, scale=image_size)
crop = dict(_base_.crop, crop_size=image_size)
test_resize = dict(_base_.test_resize, scale=image_size)
train_pipeline = [
    _base_.load, _base_.annotations, resize, crop, _base_.filtered, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.annotations, _base_.test_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
