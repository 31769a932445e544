# Mask R-CNN as in ConvNeXt V1: MMDetection's heads and its NMS, multi-scale crop, 8 GPUs x 2 images.
_base_ = [
    './sizes.py', './runtime.py', './backbone.py', './coco_schedule.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './ms-crop_coco.py', 'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_detection', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
model = dict(
    backbone=dict(_base_.backbone, _delete_=True),
    rpn_head=dict(type='FP32RPNHead'),
    roi_head=dict(
        bbox_roi_extractor=dict(type='FP32SingleRoIExtractor'), mask_roi_extractor=dict(type='FP32SingleRoIExtractor')))
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/segm_mAP'))
