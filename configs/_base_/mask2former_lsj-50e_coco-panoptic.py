# Mask2Former for COCO panoptic, 50 epochs at 8 GPUs x 2 images: MMDetection's
# mask2former_r50_8xb2-lsj-50e_coco-panoptic with our backbone. From there: model, large-scale jitter to 1024, steps at
# 8/9 and 26/27 of the run, evaluation. Reading labels and evaluating need panopticapi, which is on GitHub only:
# pip install git+https://github.com/cocodataset/panopticapi.git
_base_ = [
    './sizes.py', './runtime.py', './mask2former.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
]
custom_imports = dict(imports=['mmconvnextv2.models.fp32_transformers'], allow_failed_imports=False)
model = dict(
    backbone=_base_.mask2former.backbone,
    panoptic_head=dict(type='FP32Mask2FormerHead', pixel_decoder=dict(type='FP32MSDeformAttnPixelDecoder')))
optim_wrapper = _base_.mask2former.optim_wrapper
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(
    _base_.run_hooks,
    checkpoint=dict(
        type='VerifiedCheckpointHook', max_keep_ckpts=3, save_best='coco_panoptic/PQ', rule='greater'))
