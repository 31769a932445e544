# Mask2Former for ADE20K, 160k iterations at 8 GPUs x 2 images, crops of 512: MMSegmentation's
# mask2former_r50_8xb2-160k_ade20k-512x512 (it needs mmdet) with our backbone. From there: model, augmentation, poly
# schedule of power 0.9 without warm-up. A layer decay of 0.8 is within the sweep that ConvNeXt V2 used at this learning
# rate and batch (arXiv 2301.00808, appendix A.4).
_base_ = [
    './sizes.py', './runtime.py', './mask2former.py', 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
]
custom_imports = dict(
    imports=['mmdet.models', 'mmconvnextv2.models.fp32_segmentation', 'mmconvnextv2.datasets.segmentation'],
    allow_failed_imports=False)
model = dict(
    backbone=_base_.mask2former.backbone,
    decode_head=dict(
        type='FP32Mask2FormerHead', pixel_decoder=dict(type='mmdet.FP32MSDeformAttnPixelDecoder')))
optim_wrapper = _base_.mask2former.optim_wrapper
num_classes = 150
labels = dict(type='LoadCheckedLabels', num_classes=num_classes, reduce_zero_label=True)
load = dict(type='LoadImageFromFile')
side = 512
resize = dict(
    type='RandomChoiceResize', scales=[side * tenths // 10 for tenths in range(5, 21)],
    resize_type='ResizeShortestEdge', max_size=4 * side)
crop = dict(type='RandomCrop', crop_size=(side, side), cat_max_ratio=0.75)
flip = dict(type='RandomFlip', prob=0.5)
colour = dict(type='PhotoMetricDistortion')
pack = dict(type='PackSegInputs')
test_resize = dict(type='Resize', scale=(4 * side, side), keep_ratio=True)
train_pipeline = [load, labels, resize, crop, flip, colour, pack]
test_pipeline = [load, test_resize, labels, pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(
    _base_.run_hooks,
    checkpoint=dict(
        type='VerifiedCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3, save_best='mIoU'))
