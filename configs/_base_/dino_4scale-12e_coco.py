# DINO with four feature levels, 12 epochs, 8 GPUs x 2 images: MMDetection's dino-4scale_r50_8xb2-12e_coco with our
# backbone. From there: model, augmentation, AdamW 1e-4, weight decay 1e-4, clipping at 0.1, step after 11 epochs.
# Layer decay in place of the backbone's 0.1 and a warm-up of 500 iterations are those of InternImage's DINO
# (OpenGVLab/InternImage, dino_4scale_internimage_t_1x_coco_layer_wise_lr), whose 0.9 per layer leaves 0.04 at the stem.
_base_ = ['./sizes.py', './runtime.py', './backbone.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_transformers', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
model = dict(
    type='FP32DINO',
    backbone=dict(_base_.backbone, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[256, 512, 1024]),
    bbox_head=dict(type='FP32DINOHead'))
train_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator
# Norms, biases and GRN are exempt from weight decay by the constructor; queries are decayed, as upstream.
optim_wrapper = dict(
    _delete_=True,
    type='BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8, decay_type='group_wise'))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1)
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP'))
