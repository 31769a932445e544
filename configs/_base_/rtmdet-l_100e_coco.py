# RTMDet-l, 100 epochs: MMDetection's rtmdet_l_convnext_b_4xb32-100e_coco with our backbone. From there: model with
# GroupNorm, mosaic and mix-up until epoch 90, AdamW 1e-3, weight decay 0.05, layer decay, warm-up of 1000 iterations,
# cosine schedule from epoch 50, moving average. RTMDet does not clip gradients.
# The published batch is 4 GPUs x 32 images, here 8 x 16. Upstream's auto_scale_lr says 16, a default that it inherits.
_base_ = ['./sizes.py', './runtime.py', './backbone.py', 'mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py']
custom_imports = dict(
    imports=['mmconvnextv2.models.fp32_detection', 'mmconvnextv2.datasets.coco'], allow_failed_imports=False)
# Upstream drops paths at 0.7 and recomputes blocks (with_cp=True); 0.4 is within ConvNeXt V2's own sweep.
model = dict(
    backbone=dict(_base_.backbone, _delete_=True, out_indices=(1, 2, 3)),
    bbox_head=dict(type='FP32RTMDetSepBNHead'))
train_dataloader = dict(batch_size=16, dataset=dict(type='CheckedCocoDataset'))
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator
# Norms, biases and GRN are exempt from weight decay by the constructor.
optim_wrapper = dict(
    _delete_=True,
    type='BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.8, decay_type='group_wise'))
auto_scale_lr = dict(enable=False, base_batch_size=128)
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP'))
