# Mask R-CNN for 12 epochs at one scale, 8 GPUs x 2 images, the common first try; leaves start from fine-tuned weights.
_base_ = './mask-rcnn_lsj-3x_coco.py'
model = dict(data_preprocessor=dict(batch_augments=None))
resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
test_pack = dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
train_pipeline = [_base_.load, _base_.annotations, resize, _base_.flip, _base_.pack]
test_pipeline = [_base_.load, resize, _base_.annotations, test_pack]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=16)
