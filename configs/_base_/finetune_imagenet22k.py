# ImageNet-22K intermediate fine-tuning of FCMAE weights at batch 4096, 32 GPUs x 128 images (arXiv 2301.00808,
# table 12). 21841 classes and no evaluation as in ConvNeXt V1. Section 5 trains at 384 pixels on ImageNet-22K and
# ImageNet-1K, as the leaves ending in 384 do; 224, a third of the cost, is our choice.
_base_ = './finetune_imagenet.py'
num_classes = 21841
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    head=dict(num_classes=num_classes),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
train_dataloader = dict(dataset=dict(type='ImageNet21k', data_root='data/imagenet22k'))
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None

lr, epochs, warmup = 4e-3, 90, 5
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / lr, by_epoch=True, begin=warmup, end=epochs,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=4096)
custom_hooks = []
