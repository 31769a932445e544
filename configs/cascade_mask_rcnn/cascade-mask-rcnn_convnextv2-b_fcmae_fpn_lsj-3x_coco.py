_base_ = './cascade-mask-rcnn_convnextv2-b_fpn_lsj-3x_coco.py'
# Published: none. Learning rate, decay and drop path of the Mask R-CNN recipe, which suit its FCMAE weights.
model = dict(backbone=_base_.sizes.base.detection)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
