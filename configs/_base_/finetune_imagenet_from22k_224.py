# ImageNet-1K fine-tuning at 224 pixels from weights fine-tuned on ImageNet-22K, at batch 512, 16 GPUs x 32 images
# (arXiv 2301.00808, table 13): no warm-up, no mixup, no cutmix. Leaves set the epochs.
_base_ = './finetune_imagenet.py'
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-6 / 5e-5, by_epoch=True, convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=512)
