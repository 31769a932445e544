# FCMAE-Atto at 160 pixels on a folder of images, for as many epochs as one hour on two cores allows while the twin
# without GRN trains in parallel.
_base_ = './fcmae_50-epochs_in1k-sample.py'
num_epochs = 160
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.param_scheduler[0], {**_base_.param_scheduler[1], 'end': num_epochs}]
default_hooks = dict(checkpoint=dict(interval=500))
custom_hooks = [dict(type='ReconstructionHook', interval=20)]
