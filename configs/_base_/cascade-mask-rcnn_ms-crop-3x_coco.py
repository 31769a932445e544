# Cascade Mask R-CNN as in ConvNeXt V1: 4conv1fc SyncBN heads, GIoU, multi-scale crop, 8 GPUs x 2 images.
_base_ = [
    './sizes.py', './runtime.py', './backbone.py', './coco_schedule.py', './ms-crop_coco.py',
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_detection', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
num_classes = 80
bbox_head = [
    dict(
        type='ConvFCBBoxHead',
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=num_classes,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=stds),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
]
model = dict(
    backbone=dict(_base_.backbone, _delete_=True),
    rpn_head=dict(type='FP32RPNHead'),
    roi_head=dict(
        bbox_head=bbox_head,
        bbox_roi_extractor=dict(type='FP32SingleRoIExtractor'),
        mask_roi_extractor=dict(type='FP32SingleRoIExtractor')))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.8))
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/segm_mAP'))
