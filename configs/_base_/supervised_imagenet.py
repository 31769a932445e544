# Supervised training from scratch at batch 4096, 32 GPUs x 128 images: the paper's control, with the recipe of
# ConvNeXt V1 (arXiv 2201.03545, table 5) and the head initialised with the usual 0.02.
_base_ = './finetune_imagenet.py'
model = dict(
    backbone=dict(init_cfg=None),
    head=dict(init_cfg=dict(std=0.02)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
lr, epochs, warmup = 4e-3, 300, 20
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / lr, by_epoch=True, begin=warmup, end=epochs,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=4096)
