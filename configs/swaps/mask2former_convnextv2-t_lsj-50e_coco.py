# The name of 0.1, until 0.4: only the backbone is swapped, and the settings are upstream's for its own.
# The recipe is ../mask2former/mask2former_convnextv2-t_lsj-50e_coco.py.
_base_ = ['../_base_/sizes.py', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
custom_imports = dict(imports=['mmconvnextv2'], allow_failed_imports=False)
size = _base_.sizes.tiny
start = dict(type='ConvNeXtV2Pretrained', checkpoint=size.im1k)
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXtV2', arch=size.arch, drop_path_rate=0.3, init_cfg=start),
    panoptic_head=dict(in_channels=size.channels))
