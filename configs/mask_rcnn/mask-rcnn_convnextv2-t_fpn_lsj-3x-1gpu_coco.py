_base_ = './mask-rcnn_convnextv2-t_fpn_lsj-3x_coco.py'
# Published: none at this size.
# One GPU: 8 steps of 4 images make a batch of 32; schedulers count steps, so the warmup is 8 times as long.
optim_wrapper = dict(accumulative_counts=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=8000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1)
]
