_base_ = '../_base_/cascade-mask-rcnn_ms-crop-3x_coco.py'
# Published: none for V2; learning rate, decay and drop path are those of ConvNeXt V1's L config.
size = _base_.sizes.large
# Kept as in 0.1: these rates are for supervised weights (checkpoint=size.im1k), yet raw FCMAE weights are its start;
# cascade-mask-rcnn_convnextv2-l_fcmae_fpn_ms-crop-3x_coco.py has rates for those.
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.7, init_cfg=dict(checkpoint=size.fcmae)),
    neck=dict(in_channels=size.channels))
optim_wrapper = dict(optimizer=dict(lr=0.0001), paramwise_cfg=dict(decay_rate=0.7))
