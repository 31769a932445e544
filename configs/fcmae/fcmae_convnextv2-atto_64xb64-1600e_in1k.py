# ConvNeXt V2-Atto, FCMAE, 1600 epochs, effective batch 4096.
_base_ = '../_base_/fcmae.py'
model = dict(backbone=dict(arch='atto'))
num_epochs = 1600
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'end': num_epochs}]
