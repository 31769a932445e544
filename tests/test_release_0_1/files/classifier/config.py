auto_scale_lr = dict(base_batch_size=1024, enable=False)
custom_hooks = [
    dict(momentum=0.0001, priority='ABOVE_NORMAL', type='EMAHook'),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'mmconvnextv2',
    ])
data_preprocessor = dict(
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    num_classes=3,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=True)
default_hooks = dict(
    checkpoint=dict(
        _scope_='mmpretrain',
        interval=1,
        max_keep_ckpts=3,
        type='VerifiedCheckpointHook'),
    finite_loss=dict(type='FiniteLossHook'),
    logger=dict(_scope_='mmpretrain', interval=100, type='LoggerHook'),
    param_scheduler=dict(_scope_='mmpretrain', type='ParamSchedulerHook'),
    preemption=dict(type='PreemptionHook'),
    sampler_seed=dict(_scope_='mmpretrain', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmpretrain', type='IterTimerHook'),
    visualization=dict(
        _scope_='mmpretrain', enable=False, type='VisualizationHook'))
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
launcher = 'none'
load_from = None
log_level = 'INFO'
mean = [
    123.675,
    116.28,
    103.53,
]
metainfo = dict(classes=(
    'checks',
    'rings',
    'stripes',
))
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
        drop_path_rate=0.1,
        gap_before_final_norm=True,
        init_cfg=None,
        out_indices=(3, ),
        type='ConvNeXtV2',
        with_cp=False),
    head=dict(
        in_channels=12,
        init_cfg=dict(layer='Linear', std=2e-05, type='TruncNormal'),
        loss=dict(
            label_smooth_val=0.2, mode='original', type='LabelSmoothLoss'),
        num_classes=3,
        type='LinearClsHead'),
    type='ImageClassifier')
num_classes = 1000
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ), lr=0.0008, type='AdamW', weight_decay=0.3),
    paramwise_cfg=dict(decay_rate=0.9, decay_type='layer_wise'),
    type='BF16OptimWrapper')
param_scheduler = [
    dict(
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
        end=600,
        eta_min_ratio=0.0012499999999999998,
        type='CosineAnnealingLR'),
]
randomness = dict(deterministic=False, seed=None)
recipe = dict(
    cutmix=0.0,
    decay_rate=0.9,
    decay_type='layer_wise',
    drop_path_rate=0.1,
    epochs=600,
    lr=0.0008,
    mixup=0.0,
    smoothing=0.2,
    warmup=0,
    weight_decay=0.3)
resume = False
size = dict(
    arch='atto',
    channels=[
        40,
        80,
        160,
        320,
    ],
    classification=dict(
        cutmix=0.0,
        decay_rate=0.9,
        decay_type='layer_wise',
        drop_path_rate=0.1,
        epochs=600,
        lr=0.0008,
        mixup=0.0,
        smoothing=0.2,
        warmup=0,
        weight_decay=0.3),
    detection=dict(drop_path_rate=0.2),
    fcmae=
    'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt',
    im1k=
    'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt',
    segmentation=dict(drop_path_rate=0.1))
sizes = dict(
    atto=dict(
        arch='atto',
        channels=[
            40,
            80,
            160,
            320,
        ],
        classification=dict(
            cutmix=0.0,
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.1,
            epochs=600,
            lr=0.0008,
            mixup=0.0,
            smoothing=0.2,
            warmup=0,
            weight_decay=0.3),
        detection=dict(drop_path_rate=0.2),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt',
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt',
        segmentation=dict(drop_path_rate=0.1)),
    base=dict(
        arch='base',
        channels=[
            128,
            256,
            512,
            1024,
        ],
        classification=dict(
            cutmix=1.0,
            decay_rate=0.6,
            decay_type='group_wise',
            drop_path_rate=0.1,
            epochs=100,
            lr=0.0025,
            mixup=0.8,
            smoothing=0.1,
            warmup=20,
            weight_decay=0.05),
        detection=dict(drop_path_rate=0.4),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_base_1k_224_fcmae.pt',
        from22k=dict(
            checkpoint='work_dirs/convnextv2-b_fcmae-ft_in22k-224/epoch_90.pth',
            decay_rate=0.8,
            decay_type='group_wise',
            drop_path_rate=0.2,
            epochs=30),
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_base_1k_224_ema.pt',
        im22k_224=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_base_22k_224_ema.pt',
        im22k_384=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_base_22k_384_ema.pt',
        in22k=dict(
            decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.1),
        segmentation=dict(drop_path_rate=0.3),
        supervised=dict(drop_path_rate=0.5)),
    femto=dict(
        arch='femto',
        channels=[
            48,
            96,
            192,
            384,
        ],
        classification=dict(
            cutmix=0.3,
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.0,
            epochs=600,
            lr=0.0008,
            mixup=0.3,
            smoothing=0.2,
            warmup=0,
            weight_decay=0.05),
        detection=dict(drop_path_rate=0.2),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_femto_1k_224_fcmae.pt',
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_femto_1k_224_ema.pt',
        segmentation=dict(drop_path_rate=0.1)),
    huge=dict(
        arch='huge',
        channels=[
            352,
            704,
            1408,
            2816,
        ],
        classification=dict(
            cutmix=1.0,
            decay_rate=0.75,
            decay_type='layer_wise',
            drop_path_rate=0.3,
            epochs=50,
            lr=0.005,
            mixup=0.8,
            smoothing=0.1,
            warmup=10,
            weight_decay=0.05),
        detection=dict(drop_path_rate=0.5),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_huge_1k_224_fcmae.pt',
        from22k=dict(
            checkpoint='work_dirs/convnextv2-h_fcmae-ft_in22k-224/epoch_90.pth',
            decay_rate=0.85,
            decay_type='layer_wise',
            drop_path_rate=0.5,
            epochs=30),
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_huge_1k_224_ema.pt',
        im22k_384=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_huge_22k_384_ema.pt',
        im22k_512=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_huge_22k_512_ema.pt',
        in22k=dict(
            decay_rate=0.8, decay_type='layer_wise', drop_path_rate=0.3),
        segmentation=dict(drop_path_rate=0.4)),
    large=dict(
        arch='large',
        channels=[
            192,
            384,
            768,
            1536,
        ],
        classification=dict(
            cutmix=1.0,
            decay_rate=0.6,
            decay_type='group_wise',
            drop_path_rate=0.2,
            epochs=100,
            lr=0.0025,
            mixup=0.8,
            smoothing=0.1,
            warmup=20,
            weight_decay=0.05),
        detection=dict(drop_path_rate=0.5),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_large_1k_224_fcmae.pt',
        from22k=dict(
            checkpoint='work_dirs/convnextv2-l_fcmae-ft_in22k-224/epoch_90.pth',
            decay_rate=0.8,
            decay_type='group_wise',
            drop_path_rate=0.3,
            epochs=30),
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_large_1k_224_ema.pt',
        im22k_224=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_large_22k_224_ema.pt',
        im22k_384=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_large_22k_384_ema.pt',
        in22k=dict(
            decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.1),
        segmentation=dict(drop_path_rate=0.4)),
    nano=dict(
        arch='nano',
        channels=[
            80,
            160,
            320,
            640,
        ],
        classification=dict(
            cutmix=0.5,
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.1,
            epochs=600,
            lr=0.0008,
            mixup=0.5,
            smoothing=0.2,
            warmup=0,
            weight_decay=0.3),
        detection=dict(drop_path_rate=0.2),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_nano_1k_224_fcmae.pt',
        from22k=dict(
            checkpoint='work_dirs/convnextv2-n_fcmae-ft_in22k-224/epoch_90.pth',
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.1,
            epochs=90),
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_nano_1k_224_ema.pt',
        im22k_224=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_nano_22k_224_ema.pt',
        im22k_384=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_nano_22k_384_ema.pt',
        in22k=dict(
            decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0),
        segmentation=dict(drop_path_rate=0.1)),
    pico=dict(
        arch='pico',
        channels=[
            64,
            128,
            256,
            512,
        ],
        classification=dict(
            cutmix=0.3,
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.0,
            epochs=600,
            lr=0.0008,
            mixup=0.3,
            smoothing=0.2,
            warmup=0,
            weight_decay=0.3),
        detection=dict(drop_path_rate=0.2),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_pico_1k_224_fcmae.pt',
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_pico_1k_224_ema.pt',
        segmentation=dict(drop_path_rate=0.1)),
    tiny=dict(
        arch='tiny',
        channels=[
            96,
            192,
            384,
            768,
        ],
        classification=dict(
            cutmix=1.0,
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.2,
            epochs=300,
            lr=0.0032,
            mixup=0.8,
            smoothing=0.1,
            warmup=40,
            weight_decay=0.05),
        detection=dict(drop_path_rate=0.3),
        fcmae=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_tiny_1k_224_fcmae.pt',
        from22k=dict(
            checkpoint='work_dirs/convnextv2-t_fcmae-ft_in22k-224/epoch_90.pth',
            decay_rate=0.9,
            decay_type='layer_wise',
            drop_path_rate=0.1,
            epochs=90),
        im1k=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im1k/convnextv2_tiny_1k_224_ema.pt',
        im22k_224=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_tiny_22k_224_ema.pt',
        im22k_384=
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k/convnextv2_tiny_22k_384_ema.pt',
        in22k=dict(
            decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0),
        segmentation=dict(drop_path_rate=0.2)))
std = [
    58.395,
    57.12,
    57.375,
]
test_cfg = dict()
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root='work_dirs/release/data/folders',
        metainfo=dict(classes=(
            'checks',
            'rings',
            'stripes',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                edge='short',
                interpolation='bicubic',
                scale=256,
                type='ResizeEdge'),
            dict(crop_size=224, type='CenterCrop'),
            dict(type='PackInputs'),
        ],
        split='val',
        type='ImageNet'),
    num_workers=0,
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(topk=1, type='Accuracy')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        backend='pillow',
        edge='short',
        interpolation='bicubic',
        scale=256,
        type='ResizeEdge'),
    dict(crop_size=224, type='CenterCrop'),
    dict(type='PackInputs'),
]
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root='work_dirs/release/data/folders',
        metainfo=dict(classes=(
            'checks',
            'rings',
            'stripes',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                crop_ratio_range=(
                    0.08,
                    1.0,
                ),
                interpolation='bicubic',
                scale=224,
                type='RandomResizedCrop'),
            dict(prob=0.5, type='RandomFlip'),
            dict(
                hparams=dict(
                    interpolation='bicubic', pad_val=[
                        104,
                        116,
                        124,
                    ]),
                magnitude_level=9,
                magnitude_std=0.5,
                num_policies=2,
                policies='timm_increasing',
                total_level=10,
                type='RandAugment'),
            dict(
                erase_prob=0.25,
                fill_color=[
                    103.53,
                    116.28,
                    123.675,
                ],
                fill_std=[
                    57.375,
                    57.12,
                    58.395,
                ],
                max_area_ratio=0.3333333333333333,
                min_area_ratio=0.02,
                mode='rand',
                type='RandomErasing'),
            dict(type='PackInputs'),
        ],
        split='train',
        type='ImageNet'),
    drop_last=True,
    num_workers=0,
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(shuffle=True, type='DefaultSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        backend='pillow',
        crop_ratio_range=(
            0.08,
            1.0,
        ),
        interpolation='bicubic',
        scale=224,
        type='RandomResizedCrop'),
    dict(prob=0.5, type='RandomFlip'),
    dict(
        hparams=dict(interpolation='bicubic', pad_val=[
            104,
            116,
            124,
        ]),
        magnitude_level=9,
        magnitude_std=0.5,
        num_policies=2,
        policies='timm_increasing',
        total_level=10,
        type='RandAugment'),
    dict(
        erase_prob=0.25,
        fill_color=[
            103.53,
            116.28,
            123.675,
        ],
        fill_std=[
            57.375,
            57.12,
            58.395,
        ],
        max_area_ratio=0.3333333333333333,
        min_area_ratio=0.02,
        mode='rand',
        type='RandomErasing'),
    dict(type='PackInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root='work_dirs/release/data/folders',
        metainfo=dict(classes=(
            'checks',
            'rings',
            'stripes',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                edge='short',
                interpolation='bicubic',
                scale=256,
                type='ResizeEdge'),
            dict(crop_size=224, type='CenterCrop'),
            dict(type='PackInputs'),
        ],
        split='val',
        type='ImageNet'),
    num_workers=0,
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(topk=1, type='Accuracy')
vis_backends = [
    dict(_scope_='mmpretrain', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmpretrain',
    type='UniversalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/'
work_dir = 'work_dirs/release/classifier'
