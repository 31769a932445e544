# ImageNet-1K fine-tuning of FCMAE weights at batch 1024, 8 GPUs x 128 images (arXiv 2301.00808, tables 9 to 11).
# Settings missing in the tables follow the official fine-tuning code: random erasing 0.25, crops of 8 to 100 %, flips,
# bicubic, only full batches, warm-up from 0, cosine schedule down to 1e-6 times the layer's scale.
_base_ = ['./sizes.py', './runtime.py', 'mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
num_classes = 1000
mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
data_preprocessor = dict(num_classes=num_classes, mean=mean, std=std, to_rgb=True)

# The head is initialised with 0.001 of the usual 0.02.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ConvNeXtV2',
        arch='base',
        out_indices=(3, ),
        gap_before_final_norm=True,
        with_cp=False,
        init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=None)),
    head=dict(
        type='LinearClsHead',
        num_classes=num_classes,
        in_channels=1024,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5)))
optim_wrapper = dict(
    type='BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='layer_wise'))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
default_hooks = dict(_base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3))

# RandAugment (9, 0.5): two operations of strength 9 +- 0.5 out of 10. Fill colours are BGR, like the images.
load = dict(type='LoadImageFromFile')
crop = dict(
    type='RandomResizedCrop', scale=224, crop_ratio_range=(0.08, 1.0), backend='pillow', interpolation='bicubic')
flip = dict(type='RandomFlip', prob=0.5)
augment = dict(
    type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
    magnitude_std=0.5, hparams=dict(pad_val=[round(x) for x in mean[::-1]], interpolation='bicubic'))
erase = dict(
    type='RandomErasing', erase_prob=0.25, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3,
    fill_color=mean[::-1], fill_std=std[::-1])
pack = dict(type='PackInputs')
train_pipeline = [load, crop, flip, augment, erase, pack]
test_pipeline = [
    load,
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    pack,
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
# Mixup, CutMix and drop path are drawn on each GPU; with one seed for all, every GPU would draw the same.
randomness = dict(diff_rank_seed=True)
val_cfg = dict()
test_cfg = dict()
