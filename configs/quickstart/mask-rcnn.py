# Mask R-CNN on the embedded data set: narrow heads, few proposals, small images.
_base_ = '../_base_/mask-rcnn_lsj-3x_coco.py'
num_epochs = 6
data_root = 'work_dirs/quickstart/data/coco/'
metainfo = dict(classes=('disc', 'square', 'triangle', 'star', 'ring', 'cross'))
num_classes = len(metainfo['classes'])
channels = 64
norm = dict(type='BN')
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=dict(arch='atto', drop_path_rate=0.),
    neck=dict(in_channels=_base_.sizes.atto.channels, out_channels=channels, norm_cfg=norm),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=num_classes),
        mask_head=dict(
            in_channels=channels, conv_out_channels=channels, num_convs=2, norm_cfg=norm, num_classes=num_classes)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=64), rcnn=dict(sampler=dict(num=48))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=30), rcnn=dict(max_per_img=20)))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=4, num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=pipeline))
val_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=1.0))
train_cfg = dict(max_epochs=num_epochs, val_interval=num_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, eta_min=1e-5, convert_to_iter_based=True)]
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=num_epochs))
visualizer = dict(line_width=1, alpha=0.5)
randomness = dict(seed=0)
