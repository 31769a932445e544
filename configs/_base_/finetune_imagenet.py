# ImageNet-1K fine-tuning at batch 1024 (arXiv 2301.00808, tables 11 to 13); 8 GPUs x 128 pictures.
_base_ = [
    './sizes.py', 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py', 'mmpretrain::_base_/default_runtime.py'
]
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
num_classes = 1000
data_preprocessor = dict(num_classes=num_classes)
# The head starts at 0.001 of the usual 0.02.
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
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.9, decay_type='layer_wise'))
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
