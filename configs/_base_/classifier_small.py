# A classifier of 20 to 2,000 images of your own in one folder per class. Leaves set the size.
# max_iters is the length; the schedule, evaluations and checkpoints follow from it.
_base_ = './finetune_imagenet.py'
max_iters = 400
classes = ('cat', 'dog')  # the folders in data_root/train and data_root/val, in alphabetical order
data_root = 'data/own'
model = dict(backbone=dict(drop_path_rate=0.1, frozen_stages=2), head=dict(num_classes=len(classes)))
data_preprocessor = dict(num_classes=len(classes))
crop = dict(_base_.crop, crop_ratio_range=(0.35, 1.0))
colour = dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3)
train_pipeline = [_base_.load, crop, _base_.flip, colour, _base_.pack]
own = dict(_delete_=True, type='CustomDataset', data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=16, num_workers=2, drop_last=False, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_prefix='train', pipeline=train_pipeline, **own))
val_dataloader = dict(
    batch_size=16, num_workers=2, dataset=dict(data_prefix='val', pipeline=_base_.test_pipeline, **own))
test_dataloader = val_dataloader
val_evaluator = dict(topk=1)
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max_iters // 20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=max_iters // 20, end=max_iters, eta_min_ratio=0.01)]
# float32, since many CPUs and older GPUs are slow in bfloat16; --amp selects bfloat16
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=16)
custom_hooks = []  # an average of the weights would lag in so short a run
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1, save_best='accuracy/top1'))
log_processor = dict(by_epoch=False)
