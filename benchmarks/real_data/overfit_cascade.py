# Cascade Mask R-CNN with the Atto backbone, otherwise like overfit_mask-rcnn.py.
_base_ = '../../configs/_base_/cascade-mask-rcnn_ms-crop-3x_coco.py'
num_iters = 150
channels, norm = 96, dict(type='BN')
narrow = dict(num_shared_convs=2, in_channels=channels, conv_out_channels=channels, fc_out_channels=256, norm_cfg=norm)
bbox_head = [{**head, **narrow} for head in _base_.bbox_head]
model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=_base_.sizes.atto.channels, out_channels=channels, norm_cfg=norm),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        bbox_head=bbox_head,
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=2, norm_cfg=norm),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=400, max_per_img=200)),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)
data_root = 'work_dirs/real_data/overfit/'
resize = dict(type='Resize', scale=(256, 256), keep_ratio=True)
annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
pipeline = [dict(type='LoadImageFromFile'), annotations, resize, dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    annotations,
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(data_root=data_root, ann_file='eight.json')
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(**data, data_prefix=dict(img='images/'), pipeline=pipeline),
)
val_dataloader = dict(num_workers=1, dataset=dict(**data, data_prefix=dict(img='images/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'eight.json')
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=1.0))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=num_iters, val_interval=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=num_iters, eta_min=1e-5),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=num_iters))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
