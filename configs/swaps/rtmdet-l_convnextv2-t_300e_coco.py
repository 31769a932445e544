# The name of 0.1, until 0.4: only the backbone is swapped, and the settings are upstream's for its own.
# The recipe is ../rtmdet/rtmdet-l_convnextv2-t_100e_coco.py; a rate of 4e-3 for all layers is meant for upstream's.
_base_ = ['../_base_/sizes.py', 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py']
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
size = _base_.sizes.tiny
start = dict(type='ConvNeXtV2Pretrained', checkpoint=size.im1k)
model = dict(
    # RTMDet reads BGR; the weights were trained on RGB
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(_delete_=True, type='ConvNeXtV2', arch=size.arch, out_indices=(1, 2, 3), init_cfg=start),
    neck=dict(in_channels=size.channels[1:]))
