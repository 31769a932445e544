_base_ = '../_base_/finetune_imagenet22k.py'
# Published: no number; the step before fine-tuning on ImageNet-1K (arXiv 2301.00808, table 12).
size = _base_.sizes.base
recipe = size.in22k
model = dict(
    backbone=dict(arch='base', drop_path_rate=recipe.drop_path_rate, init_cfg=dict(checkpoint=size.fcmae)),
    head=dict(in_channels=size.channels[3]))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=recipe.decay_rate, decay_type=recipe.decay_type))
