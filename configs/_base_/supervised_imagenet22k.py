# Supervised training from scratch on ImageNet-22K at batch 4096, 32 GPUs x 128 images, with the recipe of ConvNeXt V1
# (arXiv 2201.03545, table 5).
_base_ = './finetune_imagenet22k.py'
model = dict(backbone=dict(init_cfg=None), head=dict(init_cfg=dict(std=0.02)))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
