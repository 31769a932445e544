auto_scale_lr = dict(base_batch_size=64)
base_batch = 64
batch_size = 64
crop = dict(
    backend='pillow',
    crop_ratio_range=(
        0.2,
        1.0,
    ),
    interpolation='bicubic',
    scale=224,
    type='RandomResizedCrop')
custom_hooks = []
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'mmconvnextv2.pretrain',
    ])
default_hooks = dict(
    checkpoint=dict(
        interval=1, max_keep_ckpts=3, type='VerifiedCheckpointHook'),
    finite_loss=dict(type='FiniteLossHook'),
    logger=dict(interval=5, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    preemption=dict(type='PreemptionHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'))
default_scope = 'mmpretrain'
env_cfg = dict(
    dist_cfg=dict(backend='nccl', timeout=1800),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
launcher = 'none'
load = dict(type='LoadImageFromFile')
load_from = None
log_level = 'INFO'
model = dict(
    backbone=dict(
        arch=dict(channels=[
            4,
            8,
            8,
            12,
        ], depths=(
            1,
            1,
            1,
            1,
        )),
        init_cfg=None,
        out_indices=(3, ),
        out_norm=False,
        type='ConvNeXtV2'),
    data_preprocessor=dict(
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        std=[
            58.395,
            57.12,
            57.375,
        ],
        to_rgb=True,
        type='FCMAEDataPreprocessor'),
    execution='packed',
    head=dict(norm_pix=True, type='FCMAEHead'),
    neck=dict(channels=8, depth=1, type='FCMAEDecoder'),
    type='FCMAE')
num_epochs = 12
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        betas=(
            0.9,
            0.95,
        ),
        fused=True,
        lr=0.001,
        type='AdamW',
        weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=1.0),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=2, start_factor=0.1, type='LinearLR'),
]
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        backend='pillow',
        crop_ratio_range=(
            0.2,
            1.0,
        ),
        interpolation='bicubic',
        scale=128,
        type='RandomResizedCrop'),
    dict(prob=0.5, type='RandomFlip'),
    dict(mask_ratio=0.6, type='DrawVisibleCells'),
    dict(
        meta_keys=(
            'sample_idx',
            'img_path',
            'ori_shape',
            'img_shape',
            'visible_cells',
        ),
        type='PackInputs'),
]
randomness = dict(seed=0)
rest = [
    dict(prob=0.5, type='RandomFlip'),
    dict(mask_ratio=0.6, type='DrawVisibleCells'),
    dict(
        meta_keys=(
            'sample_idx',
            'img_path',
            'ori_shape',
            'img_shape',
            'visible_cells',
        ),
        type='PackInputs'),
]
resume = False
train_cfg = dict(max_epochs=2, type='ResumableTrainLoop')
train_dataloader = dict(
    batch_size=2,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        data_root='work_dirs/release/data/unlabelled',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                crop_ratio_range=(
                    0.2,
                    1.0,
                ),
                interpolation='bicubic',
                scale=128,
                type='RandomResizedCrop'),
            dict(prob=0.5, type='RandomFlip'),
            dict(mask_ratio=0.6, type='DrawVisibleCells'),
            dict(
                meta_keys=(
                    'sample_idx',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'visible_cells',
                ),
                type='PackInputs'),
        ],
        type='UnlabelledImages'),
    drop_last=True,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(drop_last=True, shuffle=True, type='DrawSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        backend='pillow',
        crop_ratio_range=(
            0.2,
            1.0,
        ),
        interpolation='bicubic',
        scale=224,
        type='RandomResizedCrop'),
    dict(prob=0.5, type='RandomFlip'),
    dict(mask_ratio=0.6, type='DrawVisibleCells'),
    dict(
        meta_keys=(
            'sample_idx',
            'img_path',
            'ori_shape',
            'img_shape',
            'visible_cells',
        ),
        type='PackInputs'),
]
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[
        dict(type='LocalVisBackend'),
    ])
warmup_epochs = 40
work_dir = 'work_dirs/release/fcmae'
