# Boxes on COCO for 12 epochs at one scale, 8 GPUs x 2 images, as MMDetection's 1x schedule; the optimizer is that of
# the Mask R-CNN recipes. A detector's base adds its model. lsj_pipeline, ms_pipeline and schedule_3x are for leaves of
# 36 epochs.
_base_ = [
    './sizes.py', './runtime.py', './backbone.py', './coco_schedule.py', 'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_detection', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
image_size = (1024, 1024)
load = dict(type='LoadImageFromFile', backend_args=_base_.backend_args)
annotations = dict(type='LoadAnnotations', with_bbox=True)
resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='PackDetInputs')
train_pipeline = [load, annotations, resize, flip, pack]
# Large-scale jitter to 1024, as in the Mask R-CNN recipes
jitter = dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True)
crop = dict(
    type='RandomCrop', crop_type='absolute_range', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True)
filtered = dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2))
lsj_pipeline = [load, annotations, jitter, crop, filtered, flip, pack]
lsj_padding = [dict(type='BatchFixedSizePad', size=image_size)]
# Short edges of 480 to 800 pixels, as Swin (arXiv 2103.14030, section 4.2) trains ATSS for 36 epochs
scales = [(1333, short) for short in range(480, 801, 32)]
ms_pipeline = [load, annotations, dict(type='RandomChoiceResize', scales=scales, keep_ratio=True), flip, pack]
train_dataloader = dict(dataset=dict(type='CheckedCocoDataset', needs_masks=False, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset', needs_masks=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=12)
schedule_3x = _base_.param_scheduler
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP'))
