_base_ = ['../_base_/supervised_imagenet.py', '../_base_/convnextv1.py']
# Published: 83.1 top-1 (README of facebookresearch/ConvNeXt).
size = _base_.sizes_v1.small
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.4, response_norm=None, layer_scale_init_value=1e-6),
    head=dict(in_channels=size.channels[3]))
