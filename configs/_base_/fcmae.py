# FCMAE pretraining, effective batch 4096 (arXiv 2301.00808, Table 8; the released weights were trained for 1600).
# Leaves set the size and num_epochs. Set train_dataloader.dataset.data_root to use your own folder of images.
_base_ = './runtime.py'
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmconvnextv2.pretrain'], allow_failed_imports=False)

batch_size = 64  # per GPU; 64 GPUs give the published 4096
base_batch = 4096
warmup_epochs = 40

model = dict(
    type='FCMAE',
    execution='packed',
    data_preprocessor=dict(
        type='FCMAEDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(type='ConvNeXtV2', arch='atto', out_indices=(3, ), out_norm=False),
    neck=dict(type='FCMAEDecoder', channels=512, depth=1),
    head=dict(type='FCMAEHead', norm_pix=True))

load = dict(type='LoadImageForCrop')
crop = dict(
    type='FastRandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic')
flip = dict(type='FastRandomFlip', prob=0.5)
mask = dict(type='FCMAEMaskGenerator', mask_ratio=0.6)
pack = dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'visible_cells'))
train_pipeline = [load, crop, flip, mask, pack]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DeterministicSampler', shuffle=True, drop_last=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='UnlabelledImages', data_root='data/imagenet/train', pipeline=train_pipeline))

optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
    optimizer=dict(type='AdamW', lr=1.5e-4 * base_batch / 256, betas=(0.9, 0.95), weight_decay=0.05, fused=True))
auto_scale_lr = dict(base_batch_size=base_batch)

num_epochs = 800
train_cfg = dict(type='ResumableTrainLoop', max_epochs=num_epochs)
warmup = dict(
    type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True)
cosine = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=warmup_epochs, end=num_epochs, eta_min=0.,
    convert_to_iter_based=True)
param_scheduler = [warmup, cosine]

default_hooks = dict(
    _base_.run_hooks,
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='VerifiedCheckpointHook', interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [dict(type='ReconstructionHook', interval=10)]
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl', timeout=1800))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
