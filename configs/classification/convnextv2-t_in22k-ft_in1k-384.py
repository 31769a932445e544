_base_ = '../_base_/finetune_imagenet_from22k_384.py'
# Published: 85.1 top-1 (README of the official repository).
size = _base_.sizes.tiny
recipe = size.from22k
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=recipe.drop_path_rate, init_cfg=dict(checkpoint=recipe.checkpoint)),
    head=dict(in_channels=size.channels[3]))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=recipe.decay_rate, decay_type=recipe.decay_type))
train_cfg = dict(max_epochs=recipe.epochs)
