# As mask-rcnn_own-classes.py for images of one channel; the stem of three-channel weights is adapted and logged.
_base_ = './mask-rcnn_own-classes.py'
model = dict(
    data_preprocessor=dict(mean=[114.5], std=[57.9], bgr_to_rgb=False),  # of your images; here ImageNet's in grey
    backbone=dict(in_channels=1))
load = dict(type='LoadImageFromFile', color_type='grayscale')
train_dataloader = dict(dataset=dict(pipeline=[load, *_base_.train_pipeline[1:]]))
val_dataloader = dict(dataset=dict(pipeline=[load, *_base_.test_pipeline[1:]]))
test_dataloader = val_dataloader
