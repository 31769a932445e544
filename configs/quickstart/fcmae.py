# FCMAE on the embedded data set: small images, a short schedule, from scratch.
_base_ = '../small/fcmae_convnextv2-a_small.py'
num_epochs = 12
model = dict(backbone=dict(_delete_=True, type='ConvNeXtV2', arch='atto', out_indices=(3, ), out_norm=False))
crop = dict(_base_.crop, scale=128)
pipeline = [_base_.load, crop, _base_.flip, _base_.mask, _base_.pack]
train_dataloader = dict(
    batch_size=32, num_workers=1, pin_memory=False,
    dataset=dict(data_root='work_dirs/quickstart/data/unlabelled', pipeline=pipeline))
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [dict(_base_.warmup, end=2), dict(_base_.cosine, begin=2, end=num_epochs)]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=num_epochs))
custom_hooks = [dict(type='ReconstructionHook', interval=4)]
