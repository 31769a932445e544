auto_scale_lr = dict(base_batch_size=32, enable=False)
backend_args = None
channels = 64
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'mmconvnextv2',
        'mmconvnextv2.mixed_precision',
        'mmconvnextv2.datasets.coco',
    ])
data_root = 'work_dirs/quickstart/data/coco/'
dataset_type = 'CocoDataset'
default_hooks = dict(
    checkpoint=dict(
        _scope_='mmdet', interval=1, type='VerifiedCheckpointHook'),
    finite_loss=dict(type='FiniteLossHook'),
    logger=dict(_scope_='mmdet', interval=5, type='LoggerHook'),
    param_scheduler=dict(_scope_='mmdet', type='ParamSchedulerHook'),
    preemption=dict(type='PreemptionHook'),
    sampler_seed=dict(_scope_='mmdet', type='DistSamplerSeedHook'),
    timer=dict(_scope_='mmdet', type='IterTimerHook'),
    visualization=dict(_scope_='mmdet', type='DetVisualizationHook'))
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
image_size = (
    1024,
    1024,
)
launcher = 'none'
load_from = None
log_level = 'INFO'
log_processor = dict(
    _scope_='mmdet', by_epoch=True, type='LogProcessor', window_size=50)
metainfo = dict(
    classes=(
        'disc',
        'square',
        'triangle',
        'star',
        'ring',
        'cross',
    ))
model = dict(
    _scope_='mmdet',
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
        batch_augments=None,
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_mask=True,
        pad_size_divisor=32,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='DetDataPreprocessor'),
    neck=dict(
        in_channels=[
            4,
            8,
            8,
            12,
        ],
        norm_cfg=dict(type='BN'),
        num_outs=5,
        out_channels=8,
        type='FPN'),
    roi_head=dict(
        bbox_head=dict(
            bbox_coder=dict(
                target_means=[
                    0.0,
                    0.0,
                    0.0,
                    0.0,
                ],
                target_stds=[
                    0.1,
                    0.1,
                    0.2,
                    0.2,
                ],
                type='DeltaXYWHBBoxCoder'),
            fc_out_channels=8,
            in_channels=8,
            loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
            loss_cls=dict(
                loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
            num_classes=6,
            reg_class_agnostic=False,
            roi_feat_size=7,
            type='Shared2FCBBoxHead'),
        bbox_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=8,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='FP32SingleRoIExtractor'),
        mask_head=dict(
            conv_out_channels=8,
            in_channels=8,
            loss_mask=dict(
                loss_weight=1.0, type='CrossEntropyLoss', use_mask=True),
            norm_cfg=dict(type='BN'),
            num_classes=6,
            num_convs=1,
            type='FCNMaskHead'),
        mask_roi_extractor=dict(
            featmap_strides=[
                4,
                8,
                16,
                32,
            ],
            out_channels=8,
            roi_layer=dict(output_size=14, sampling_ratio=0, type='RoIAlign'),
            type='FP32SingleRoIExtractor'),
        type='StandardRoIHead'),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[
                0.5,
                1.0,
                2.0,
            ],
            scales=[
                4,
            ],
            strides=[
                4,
                8,
                16,
                32,
                64,
            ],
            type='AnchorGenerator'),
        bbox_coder=dict(
            target_means=[
                0.0,
                0.0,
                0.0,
                0.0,
            ],
            target_stds=[
                1.0,
                1.0,
                1.0,
                1.0,
            ],
            type='DeltaXYWHBBoxCoder'),
        feat_channels=8,
        in_channels=8,
        loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
        loss_cls=dict(
            loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=True),
        type='FP32RPNHead'),
    test_cfg=dict(
        rcnn=dict(
            mask_thr_binary=0.5,
            max_per_img=5,
            nms=dict(iou_threshold=0.5, type='soft_nms'),
            score_thr=0.0),
        rpn=dict(
            max_per_img=30,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=100)),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.5,
                neg_iou_thr=0.5,
                pos_iou_thr=0.5,
                type='MaxIoUAssigner'),
            debug=False,
            mask_size=28,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=True,
                neg_pos_ub=-1,
                num=48,
                pos_fraction=0.25,
                type='RandomSampler')),
        rpn=dict(
            allowed_border=-1,
            assigner=dict(
                ignore_iof_thr=-1,
                match_low_quality=True,
                min_pos_iou=0.3,
                neg_iou_thr=0.3,
                pos_iou_thr=0.7,
                type='MaxIoUAssigner'),
            debug=False,
            pos_weight=-1,
            sampler=dict(
                add_gt_as_proposals=False,
                neg_pos_ub=-1,
                num=256,
                pos_fraction=0.5,
                type='RandomSampler')),
        rpn_proposal=dict(
            max_per_img=64,
            min_bbox_size=0,
            nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=200)),
    type='MaskRCNN')
norm = dict(type='BN')
num_classes = 6
num_epochs = 6
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ), lr=0.002, type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(decay_rate=1.0, decay_type='group_wise'),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=30, start_factor=0.01, type='LinearLR'),
    dict(
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
        end=6,
        eta_min=1e-05,
        type='CosineAnnealingLR'),
]
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackDetInputs'),
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
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _scope_='mmdet',
        ann_file='annotations/instances_val2017.json',
        backend_args=None,
        data_prefix=dict(img='val2017/'),
        data_root='work_dirs/release/data/coco/',
        metainfo=dict(
            classes=(
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                128,
                128,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmdet', shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    _scope_='mmdet',
    ann_file='work_dirs/release/data/coco/annotations/instances_val2017.json',
    backend_args=None,
    format_only=False,
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        128,
        128,
    ), type='Resize'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
        type='PackDetInputs'),
]
train_cfg = dict(max_epochs=2, type='EpochBasedTrainLoop', val_interval=2)
train_dataloader = dict(
    batch_sampler=dict(_scope_='mmdet', type='AspectRatioBatchSampler'),
    batch_size=2,
    dataset=dict(
        _scope_='mmdet',
        ann_file='annotations/instances_train2017.json',
        backend_args=None,
        data_prefix=dict(img='train2017/'),
        data_root='work_dirs/release/data/coco/',
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        metainfo=dict(
            classes=(
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackDetInputs'),
        ],
        type='CheckedCocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmdet', shuffle=True, type='DefaultSampler'))
train_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        keep_ratio=True,
        ratio_range=(
            0.1,
            2.0,
        ),
        scale=(
            1024,
            1024,
        ),
        type='RandomResize'),
    dict(
        allow_negative_crop=True,
        crop_size=(
            1024,
            1024,
        ),
        crop_type='absolute_range',
        recompute_bbox=True,
        type='RandomCrop'),
    dict(min_gt_bbox_wh=(
        0.01,
        0.01,
    ), type='FilterAnnotations'),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackDetInputs'),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _scope_='mmdet',
        ann_file='annotations/instances_val2017.json',
        backend_args=None,
        data_prefix=dict(img='val2017/'),
        data_root='work_dirs/release/data/coco/',
        metainfo=dict(
            classes=(
                'disc',
                'square',
                'triangle',
                'star',
                'ring',
                'cross',
            )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                128,
                128,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_scope_='mmdet', shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    _scope_='mmdet',
    ann_file='work_dirs/release/data/coco/annotations/instances_val2017.json',
    backend_args=None,
    format_only=False,
    metric=[
        'bbox',
        'segm',
    ],
    type='CocoMetric')
vis_backends = [
    dict(_scope_='mmdet', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmdet',
    alpha=0.5,
    line_width=1,
    name='visualizer',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/'
work_dir = 'work_dirs/release/mask-rcnn'
