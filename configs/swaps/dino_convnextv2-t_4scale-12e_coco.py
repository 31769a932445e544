# MMDetection's DINO with our backbone: these lines are the swap, everything else is theirs.
_base_ = ['../_base_/sizes.py', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
size = _base_.sizes.tiny
start = dict(type='ConvNeXtV2Pretrained', checkpoint=size.im1k)
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtV2', arch=size.arch, out_indices=(1, 2, 3), init_cfg=start),
    neck=dict(in_channels=size.channels[1:]))
