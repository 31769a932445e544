auto_scale_lr = dict(base_batch_size=16, enable=False)
checkpoint_file = 'https://download.openmmlab.com/mmclassification/v0/convnext/downstream/convnext-base_3rdparty_32xb128-noema_in1k_20220301-2a0ee547.pth'
crop_size = (
    128,
    128,
)
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'mmconvnextv2',
        'mmconvnextv2.datasets.labels',
    ])
data_preprocessor = dict(
    _scope_='mmseg',
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    pad_val=0,
    seg_pad_val=255,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    type='SegDataPreProcessor')
data_root = 'work_dirs/quickstart/data/ade'
dataset = dict(
    _delete_=True,
    data_root='work_dirs/quickstart/data/ade',
    img_suffix='.png',
    metainfo=dict(
        classes=(
            'plain',
            'stripes',
            'marble',
            'tiles',
            'disc',
            'square',
            'triangle',
            'star',
            'ring',
            'cross',
        )),
    reduce_zero_label=True,
    seg_map_suffix='.png',
    type='BaseSegDataset')
dataset_type = 'ADE20KDataset'
default_hooks = dict(
    checkpoint=dict(
        _scope_='mmseg',
        by_epoch=False,
        interval=1,
        type='VerifiedCheckpointHook'),
    finite_loss=dict(type='FiniteLossHook'),
    logger=dict(
        _scope_='mmseg',
        interval=5,
        log_metric_by_epoch=False,
        type='LoggerHook'),
    param_scheduler=dict(_scope_='mmseg', type='ParamSchedulerHook'),
    preemption=dict(type='PreemptionHook'),
    sampler_seed=dict(_scope_='mmseg', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmseg', type='IterTimerHook'),
    visualization=dict(_scope_='mmseg', type='SegVisualizationHook'))
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
img_ratios = [
    0.5,
    0.75,
    1.0,
    1.25,
    1.5,
    1.75,
]
launcher = 'none'
load_from = None
log_level = 'INFO'
log_processor = dict(by_epoch=False)
metainfo = dict(
    classes=(
        'plain',
        'stripes',
        'marble',
        'tiles',
        'disc',
        'square',
        'triangle',
        'star',
        'ring',
        'cross',
    ))
model = dict(
    _scope_='mmseg',
    auxiliary_head=dict(
        align_corners=False,
        channels=8,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=8,
        in_index=2,
        loss_decode=dict(
            loss_weight=0.4, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=10,
        num_convs=1,
        type='FCNHead'),
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
        drop_path_rate=0.0,
        frozen_stages=0,
        init_cfg=None,
        type='ConvNeXtV2',
        with_cp=False),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            128,
            128,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor'),
    decode_head=dict(
        align_corners=False,
        channels=8,
        dropout_ratio=0.1,
        in_channels=[
            4,
            8,
            8,
            12,
        ],
        in_index=[
            0,
            1,
            2,
            3,
        ],
        loss_decode=dict(
            loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=10,
        pool_scales=(
            1,
            2,
            3,
            6,
        ),
        type='UPerHead'),
    pretrained=None,
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder')
norm_cfg = dict(_scope_='mmseg', requires_grad=True, type='SyncBN')
num_classes = 10
num_iters = 400
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ), lr=0.002, type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=1.0, decay_type='group_wise'),
    type='OptimWrapper')
optimizer = dict(
    _scope_='mmseg', lr=0.01, momentum=0.9, type='SGD', weight_decay=0.0005)
param_scheduler = [
    dict(begin=0, by_epoch=False, end=30, start_factor=0.01, type='LinearLR'),
    dict(
        begin=30,
        by_epoch=False,
        end=400,
        eta_min=1e-05,
        type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
resume = False
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
test_cfg = dict(_scope_='mmseg', type='TestLoop')
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation',
            seg_map_path='annotations/validation'),
        data_root='work_dirs/release/data/ade',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'plain',
                'stripes',
                'marble',
                'tiles',
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(reduce_zero_label=True, type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    _scope_='mmseg', iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(reduce_zero_label=True, type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(
    _scope_='mmseg', max_iters=2, type='IterBasedTrainLoop', val_interval=2)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'),
        data_root='work_dirs/release/data/ade',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'plain',
                'stripes',
                'marble',
                'tiles',
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                num_classes=10,
                reduce_zero_label=True,
                type='LoadCheckedLabels'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=True, type='InfiniteSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(num_classes=10, reduce_zero_label=True, type='LoadCheckedLabels'),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackSegInputs'),
]
tta_model = dict(_scope_='mmseg', type='SegTTAModel')
tta_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(
        transforms=[
            [
                dict(keep_ratio=True, scale=(
                    1536,
                    384,
                ), type='Resize'),
                dict(keep_ratio=True, scale=(
                    1792,
                    448,
                ), type='Resize'),
                dict(keep_ratio=True, scale=(
                    2048,
                    512,
                ), type='Resize'),
                dict(keep_ratio=True, scale=(
                    2304,
                    576,
                ), type='Resize'),
                dict(keep_ratio=True, scale=(
                    2560,
                    640,
                ), type='Resize'),
            ],
            [
                dict(direction='horizontal', prob=0.0, type='RandomFlip'),
                dict(direction='horizontal', prob=1.0, type='RandomFlip'),
            ],
            [
                dict(reduce_zero_label=True, type='LoadAnnotations'),
            ],
            [
                dict(type='PackSegInputs'),
            ],
        ],
        type='TestTimeAug'),
]
tta_ratios = [
    0.75,
    0.875,
    1.0,
    1.125,
    1.25,
]
val_cfg = dict(_scope_='mmseg', type='ValLoop')
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation',
            seg_map_path='annotations/validation'),
        data_root='work_dirs/release/data/ade',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'plain',
                'stripes',
                'marble',
                'tiles',
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(reduce_zero_label=True, type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmseg', shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    _scope_='mmseg', iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
vis_backends = [
    dict(_scope_='mmseg', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmseg',
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/'
work_dir = 'work_dirs/release/upernet'
