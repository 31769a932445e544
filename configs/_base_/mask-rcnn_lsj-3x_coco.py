# Mask R-CNN, large-scale jitter to 1024, soft-NMS only in the RoI head, 8 GPUs x 4 images.
_base_ = [
    './sizes.py', './runtime.py', './backbone.py', './coco_schedule.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py', 'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_detection', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
image_size = (1024, 1024)
# Images smaller than 1024 after the jitter are padded to it. GRN's norms count the padding, which the stem's bias makes
# non-zero, so an image's norms in training differ from those of the same image in a test, which pads to 32 alone.
# Options, one key each: with_cp=True recomputes blocks, compile=True at top level compiles, frozen_stages=N freezes.
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_mask=True)]),
    backbone=dict(_base_.backbone, _delete_=True),
    rpn_head=dict(type='FP32RPNHead'),
    roi_head=dict(
        bbox_roi_extractor=dict(type='FP32SingleRoIExtractor'), mask_roi_extractor=dict(type='FP32SingleRoIExtractor')),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', iou_threshold=0.5))))
load = dict(type='LoadImageFromFile', backend_args=_base_.backend_args)
annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
jitter = dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True)
crop = dict(
    type='RandomCrop', crop_type='absolute_range', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True)
filtered = dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2))
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='PackDetInputs')
train_pipeline = [load, annotations, jitter, crop, filtered, flip, pack]
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(type='CheckedCocoDataset', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/segm_mAP'))
