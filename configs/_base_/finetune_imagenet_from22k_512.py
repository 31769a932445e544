# The same at 512 pixels; from 384 on, test images are warped to the square, not cropped (official fine-tuning code).
_base_ = './finetune_imagenet_from22k_224.py'
train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(_base_.train_pipeline[1], scale=512)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
