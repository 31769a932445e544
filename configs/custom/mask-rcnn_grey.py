# As mask-rcnn_own-classes.py for images of one channel; the stem of three-channel weights is adapted and logged.
_base_ = './mask-rcnn_own-classes.py'
model = dict(
    data_preprocessor=dict(mean=[114.5], std=[57.9], bgr_to_rgb=False),  # of your images; here ImageNet's in grey
    backbone=dict(in_channels=1))
load = dict(type='LoadImageFromFile', color_type='grayscale')
train_pipeline = [
    load, _base_.annotations, _base_.resize, _base_.crop, _base_.filtered, _base_.flip, _base_.pack]
test_pipeline = [load, _base_.test_resize, _base_.annotations, _base_.test_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
