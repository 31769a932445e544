# Mask R-CNN on 20 to 2,000 images of your own with COCO-style json. Leaves set the size of model and images.
# max_iters is the length; the schedule, evaluations and checkpoints follow from it.
_base_ = './mask-rcnn_lsj-3x_coco.py'
max_iters = 1500
classes = ('person', 'bicycle')  # names among the json's categories
data_root = 'data/own/'  # train/ and val/ hold images, train.json and val.json their objects
image_size = (384, 384)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(arch='atto', drop_path_rate=0.1, frozen_stages=2),
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))
resize = dict(type='RandomResize', scale=image_size, ratio_range=(0.5, 1.5), keep_ratio=True)
crop = dict(_base_.crop, crop_size=image_size)
colour = dict(type='PhotoMetricDistortion')
test_resize = dict(type='Resize', scale=image_size, keep_ratio=True)
test_pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
train_pipeline = [
    _base_.load, _base_.annotations, resize, crop, _base_.filtered, _base_.flip, colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.annotations, test_pack]
own = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4, num_workers=2, sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(ann_file='train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline, **own))
val_dataloader = dict(
    num_workers=2, dataset=dict(ann_file='val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline, **own))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json', classwise=True)
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max_iters // 20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=max_iters // 20, end=max_iters, eta_min_ratio=0.01)]
# float32, since many CPUs and older GPUs are slow in bfloat16; --amp selects bfloat16
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.6), clip_grad=dict(max_norm=10))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters // 5, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
