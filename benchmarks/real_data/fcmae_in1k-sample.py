# FCMAE-Atto at 224 pixels on a folder of images, 3 epochs.
_base_ = '../../configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'
num_epochs = 3
train_dataloader = dict(batch_size=16, num_workers=1, pin_memory=False)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    {**_base_.param_scheduler[0], 'end': 1},
    {**_base_.param_scheduler[1], 'begin': 1, 'end': num_epochs},
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=num_epochs))
custom_hooks = [dict(type='ReconstructionHook', interval=1)]
