_base_ = '../_base_/finetune_imagenet.py'
# Published: 86.3 top-1 (arXiv 2301.00808, table 14).
# The learning rate is the printed one, which is disputed: see sizes.py.
size = _base_.sizes.huge
recipe = size.classification
model = dict(
    backbone=dict(arch='huge', drop_path_rate=recipe.drop_path_rate, init_cfg=dict(checkpoint=size.fcmae)),
    head=dict(in_channels=size.channels[3], loss=dict(label_smooth_val=recipe.smoothing)))
model['train_cfg'] = dict(augments=[dict(type='Mixup', alpha=recipe.mixup), dict(type='CutMix', alpha=recipe.cutmix)])
optim_wrapper = dict(
    optimizer=dict(lr=recipe.lr, weight_decay=recipe.weight_decay),
    paramwise_cfg=dict(decay_rate=recipe.decay_rate, decay_type=recipe.decay_type))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, end=recipe.warmup, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', eta_min_ratio=1e-6 / recipe.lr, by_epoch=True, begin=recipe.warmup,
        end=recipe.epochs, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=recipe.epochs)
