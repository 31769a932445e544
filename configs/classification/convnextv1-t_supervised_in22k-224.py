_base_ = ['../_base_/supervised_imagenet22k.py', '../_base_/convnextv1.py']
# Published: no number; the start of fine-tuning on ImageNet-1K and of V1's largest detectors.
size = _base_.sizes_v1.tiny
model = dict(
    backbone=dict(arch=size.arch, drop_path_rate=0.0, response_norm=None, layer_scale_init_value=1e-6),
    head=dict(in_channels=size.channels[3]))
