# FCMAE on 20 to 5,000 images of your own, without labels; goes on from published weights. About 30 minutes for 700
# images on two CPU cores. Every image below data_root is used.
_base_ = ['../_base_/sizes.py', '../_base_/fcmae.py']
num_epochs = 100
warmup_epochs = 5
model = dict(
    backbone=dict(arch='atto', init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=_base_.sizes.atto.fcmae)))
crop = dict(_base_.crop, scale=160)
train_pipeline = [_base_.load, crop, _base_.flip, _base_.mask, _base_.pack]
train_dataloader = dict(
    batch_size=16, num_workers=2, dataset=dict(data_root='data/images', pipeline=train_pipeline))
# float32, since many CPUs and older GPUs are slow in bfloat16; --amp selects bfloat16
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    dict(_base_.warmup, end=warmup_epochs), dict(_base_.cosine, begin=warmup_epochs, end=num_epochs)]
default_hooks = dict(logger=dict(interval=20))
custom_hooks = [dict(type='ReconstructionHook', interval=25)]
