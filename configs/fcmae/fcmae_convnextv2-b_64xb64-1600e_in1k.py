# ConvNeXt V2-Base, FCMAE, 1600 epochs, effective batch 4096.
_base_ = '../_base_/fcmae.py'
model = dict(backbone=dict(arch='base'))
num_epochs = 1600
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.warmup, dict(_base_.cosine, end=num_epochs)]
