# UperNet-Atto with the full-size heads on CamVid; small images, few iterations.
_base_ = '../../configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py'
classes = (
    'Sky',
    'Building',
    'Pole',
    'Road',
    'Pavement',
    'Tree',
    'SignSymbol',
    'Fence',
    'Car',
    'Pedestrian',
    'Bicyclist',
)
unlabelled = 11
scale, crop_size = (320, 240), (224, 224)
model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=unlabelled),
    decode_head=dict(num_classes=len(classes), ignore_index=unlabelled),
    auxiliary_head=dict(num_classes=len(classes), ignore_index=unlabelled),
    test_cfg=dict(_delete_=True, mode='whole'),
)
dataset = dict(
    _delete_=True, type='BaseSegDataset', metainfo=dict(classes=classes), img_suffix='.jpg', seg_map_suffix='.png'
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        **dataset, pipeline=train_pipeline, data_prefix=dict(img_path='images/train', seg_map_path='annotations/train')
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        **dataset, pipeline=test_pipeline, data_prefix=dict(img_path='images/val', seg_map_path='annotations/val')
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=unlabelled)
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=60, val_interval=1000)  # tools/test.py evaluates
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20)]
optim_wrapper = dict(optimizer=dict(lr=4e-4))
default_hooks = dict(logger=dict(interval=5, log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=60))
