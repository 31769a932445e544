_base_ = '../_base_/mask2former_lsj-50e_coco.py'
# Published: none with this backbone. 100 epochs and 200 queries as MMDetection's and the official Swin-L configs.
size = _base_.sizes.large
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=size.im1k), **size.detection),
    panoptic_head=dict(num_queries=200, in_channels=size.channels))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=size.layer_decay))
max_iters = 737500
train_cfg = dict(max_iters=max_iters, dynamic_intervals=[(735001, max_iters)])
param_scheduler = dict(end=max_iters, milestones=[655556, 710184])
