# UperNet, 160k iterations at batch 16 (arXiv 2301.00808, appendix A.4); warm-up and sliding windows as in ConvNeXt V1.
_base_ = [
    './sizes.py', './runtime.py', './backbone.py', 'mmseg::_base_/models/upernet_convnext.py',
    'mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py'
]
custom_imports = dict(imports=['mmconvnextv2', 'mmconvnextv2.datasets.segmentation'], allow_failed_imports=False)
num_classes = 150
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(_base_.backbone, _delete_=True, drop_path_rate=0.3),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)))
optim_wrapper = dict(
    _delete_=True,
    type='BF16OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='group_wise'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
labels = dict(type='LoadCheckedLabels', num_classes=num_classes, reduce_zero_label=True)
load = dict(type='LoadImageFromFile')
resize = dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)
crop = dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75)
flip = dict(type='RandomFlip', prob=0.5)
colour = dict(type='PhotoMetricDistortion')
pack = dict(type='PackSegInputs')
test_resize = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
train_pipeline = [load, labels, resize, crop, flip, colour, pack]
test_pipeline = [load, test_resize, labels, pack]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# The paper's multi-scale test: five ratios of 2048x512, each with a horizontal flip.
tta_ratios = [0.75, 0.875, 1.0, 1.125, 1.25]
tta_resizes = [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in tta_ratios]
tta_flips = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0., 1.)]
tta_load = dict(type='LoadImageFromFile', backend_args=None)
tta_pipeline = [tta_load, dict(type='TestTimeAug', transforms=[tta_resizes, tta_flips, [labels], [pack]])]
default_hooks = dict(
    _base_.run_hooks, checkpoint=dict(type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='mIoU'))
