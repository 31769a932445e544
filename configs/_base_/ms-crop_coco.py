# COCO with ConvNeXt V1's augmentation for detectors, which is DETR's: the image at one of eleven sizes, or a crop of
# it. 8 GPUs x 2 images.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'
scales = [(short, 1333) for short in range(480, 801, 32)]
crop = [
    dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[[dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)], crop]),
    dict(type='PackDetInputs')
]
train_dataloader = dict(batch_size=2, dataset=dict(type='CheckedCocoDataset', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator
