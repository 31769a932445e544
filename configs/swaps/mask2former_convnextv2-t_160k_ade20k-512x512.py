# The name of 0.1, until 0.4: only the backbone is swapped, and the settings are upstream's for its own.
# The recipe is ../mask2former/mask2former_convnextv2-t_160k_ade20k-512x512.py.
_base_ = ['../_base_/sizes.py', 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py']
custom_imports = dict(imports=['mmdet.models', 'mmconvnextv2'], allow_failed_imports=False)
size = _base_.sizes.tiny
start = dict(type='ConvNeXtV2Pretrained', checkpoint=size.im1k)
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtV2', arch=size.arch, drop_path_rate=0.3, init_cfg=start),
    decode_head=dict(in_channels=size.channels))
