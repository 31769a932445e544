# FCMAE-Atto at 160 on a folder of images, as many epochs as an hour on two cores allows beside its twin without GRN.
_base_ = './fcmae_50-epochs_in1k-sample.py'
num_epochs = 160
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'end': num_epochs}]
default_hooks = dict(checkpoint=dict(interval=500))
custom_hooks = [dict(type='ReconstructionHook', interval=20)]
