_base_ = ['./upernet_convnextv2-l_160k_ade20k-512x512.py']
# Published: none at this size.
# The public ImageNet-22K weights were fine-tuned on ImageNet-1K afterwards.
crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=dict(checkpoint=_base_.sizes.large.im22k_384)),
    test_cfg=dict(crop_size=crop_size, stride=(426, 426)))
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(2560, 640))
train_pipeline[3].update(crop_size=crop_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(2560, 640))
tta_pipeline = _base_.tta_pipeline
for resize, ratio in zip(tta_pipeline[1]['transforms'][0], _base_.tta_ratios):
    resize.update(scale=(int(2560 * ratio), int(640 * ratio)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
