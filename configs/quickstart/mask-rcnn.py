# Mask R-CNN on the embedded data set: narrower heads, few proposals, small images without augmentation but flips. It
# counts epochs, as it did in 0.1.
_base_ = '../small/mask-rcnn_convnextv2-a_small.py'
num_epochs = 6
data_root = 'work_dirs/quickstart/data/coco/'
metainfo = dict(classes=('disc', 'square', 'triangle', 'star', 'ring', 'cross'))
num_classes = len(metainfo['classes'])
channels = 64
norm = dict(_delete_=True, type='BN')
model = dict(
    backbone=dict(drop_path_rate=0., frozen_stages=0),
    neck=dict(out_channels=channels, norm_cfg=norm),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=num_classes),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, norm_cfg=norm, num_classes=num_classes)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=64), rcnn=dict(sampler=dict(num=48))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=30), rcnn=dict(max_per_img=20)))
pipeline = [_base_.load, _base_.annotations, _base_.flip, _base_.pack]
test_resize = dict(_base_.test_resize, scale=(128, 128))
test_pipeline = [_base_.load, test_resize, _base_.annotations, _base_.test_pack]
own = dict(data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    num_workers=1, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/'), pipeline=pipeline, **own))
val_dataloader = dict(
    batch_size=8, num_workers=1,
    dataset=dict(
        ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'), pipeline=test_pipeline,
        **own))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json', classwise=False)
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=1.0), clip_grad=None)
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=num_epochs, val_interval=num_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, eta_min=1e-5, convert_to_iter_based=True)]
default_hooks = dict(
    logger=dict(interval=5, log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=num_epochs))
log_processor = dict(by_epoch=True)
visualizer = dict(line_width=1, alpha=0.5)
randomness = dict(seed=0)
