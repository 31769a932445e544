# The name of 0.1, until 0.4: only the backbone is swapped, and the settings are upstream's for its own.
# The recipe is ../dino/dino_convnextv2-t_4scale-12e_coco.py.
_base_ = ['../_base_/sizes.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
size = _base_.sizes.tiny
start = dict(type='ConvNeXtV2Pretrained', checkpoint=size.im1k)
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtV2', arch=size.arch, out_indices=(1, 2, 3), init_cfg=start),
    neck=dict(in_channels=size.channels[1:]))
