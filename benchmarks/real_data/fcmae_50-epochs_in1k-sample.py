# FCMAE-Atto at 160 pixels on a folder of images, 50 epochs.
_base_ = './fcmae_in1k-sample.py'
num_epochs = 50
load, crop, *rest = _base_.train_pipeline
train_dataloader = dict(dataset=dict(pipeline=[load, {**crop, 'scale': 160}, *rest]))
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    {**_base_.param_scheduler[0], 'end': 5},
    {**_base_.param_scheduler[1], 'begin': 5, 'end': num_epochs},
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=100))
custom_hooks = [dict(type='ReconstructionHook', interval=10)]
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
