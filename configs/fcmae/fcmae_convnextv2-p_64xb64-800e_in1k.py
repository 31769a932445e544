# ConvNeXt V2-Pico, FCMAE, 800 epochs, effective batch 4096.
_base_ = '../_base_/fcmae.py'
model = dict(backbone=dict(arch='pico'))
num_epochs = 800
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.warmup, dict(_base_.cosine, end=num_epochs)]
