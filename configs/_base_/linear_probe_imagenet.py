# Linear probe: a linear classifier on the frozen, pooled features, at batch 1024, 8 GPUs x 128 images. The paper has
# none; this one is a pick. Epochs, warm-up, augmentation and the lack of weight decay are those of MAE's probe (arXiv
# 2111.06377, table 10). AdamW instead of LARS, which hardly moves on a small folder, and instead of its batch norm the
# final LayerNorm, frozen as it starts, which standardises the features of each image. The log's lr 0 is that norm's.
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
