# 36 epochs at batch 32, AdamW 1e-4 (arXiv 2301.00808, appendix A.3); steps and warm-up as in ConvNeXt V1's 3x schedule.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
# The decay rate is for mmdet's "layer_wise", which is group_wise here. Use type='OptimWrapper' to train in fp32.
optim_wrapper = dict(
    type='BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='group_wise'))
auto_scale_lr = dict(enable=False, base_batch_size=32)
