# Linear probe: a linear classifier on the frozen, pooled features, at batch 1024, 8 GPUs x 128 pictures. The paper has
# none; the settings are a pick: those of MAE's probe (arXiv 2111.06377, table 10: LARS, base learning rate 0.1, no
# weight decay, 90 epochs, warm-up 10, crops and flips alone) at a smaller batch and without its batch norm. The final
# LayerNorm, frozen as it starts, standardises the features of each picture instead.
_base_ = './finetune_imagenet.py'
model = dict(
    backbone=dict(frozen_stages=4),
    head=dict(
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
        init_cfg=dict(_delete_=True, type='Normal', layer='Linear', std=0.01)))
train_pipeline = _base_.train_pipeline[:3] + _base_.train_pipeline[-1:]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
batch_size, epochs, warmup = 1024, 90, 10
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='LARS', lr=0.1 * batch_size / 256, momentum=0.9, weight_decay=0.),
    paramwise_cfg=dict(decay_rate=1.0, custom_keys={'backbone.norm3': dict(lr_mult=0.)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=warmup, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=warmup, end=epochs, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=epochs)
custom_hooks = []
