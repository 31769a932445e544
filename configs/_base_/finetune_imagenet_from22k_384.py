# The same at 384 pixels; from 384 on, test images are warped to the square, not cropped (official fine-tuning code).
_base_ = './finetune_imagenet_from22k_224.py'
crop = dict(_base_.crop, scale=384)
train_pipeline = [_base_.load, crop, _base_.flip, _base_.augment, _base_.erase, _base_.pack]
test_resize = dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic')
test_pipeline = [_base_.load, test_resize, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
