# Linear probe: a linear classifier on frozen, pooled features, at batch 1024, 8 GPUs x 128 images. The paper has no
# linear probe, so this recipe is our choice. Epochs, warm-up, augmentation and no weight decay are from MAE's probe
# (arXiv 2111.06377, table 10). AdamW replaces LARS, which hardly learns on a small folder. The final LayerNorm, frozen
# at its initial values, replaces MAE's batch norm and standardises the features of each image; the log shows its lr 0.
_base_ = './finetune_imagenet.py'
model = dict(
    backbone=dict(frozen_stages=4),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01)))
train_pipeline = [_base_.load, _base_.crop, _base_.flip, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
epochs, warmup = 90, 10
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.),
    paramwise_cfg=dict(decay_rate=1.0, custom_keys={'backbone.norm3': dict(lr_mult=0.)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=warmup, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=warmup, end=epochs, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs)
custom_hooks = []
