# Faster R-CNN on Pascal VOC 2007 and 2012: images, 4 epochs of three passes, step and metric of MMDetection's
# faster-rcnn_r50_fpn_1x_voc0712.py; optimizer and warm-up are those of the COCO recipes.
_base_ = './faster-rcnn_1x_coco.py'
data_root = 'data/VOCdevkit/'
num_classes = 20
model = dict(roi_head=dict(bbox_head=dict(num_classes=num_classes)))
resize = dict(_base_.resize, scale=(1000, 600))
train_pipeline = [_base_.load, _base_.annotations, resize, _base_.flip, _base_.pack]
test_pipeline = [_base_.load, resize, _base_.annotations, _base_.test_pipeline[-1]]
years = [
    dict(
        type='VOCDataset', data_root=data_root, ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'), pipeline=train_pipeline,
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=32))
    for year in (2007, 2012)
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='RepeatDataset', times=3,
        dataset=dict(type='ConcatDataset', ignore_keys=['dataset_type'], datasets=years)))
val_dataloader = dict(
    dataset=dict(
        _delete_=True, type='VOCDataset', data_root=data_root, ann_file='VOC2007/ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'), test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator
epochs = 4
train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=epochs, milestones=[3], gamma=0.1)
]
default_hooks = dict(checkpoint=dict(save_best='pascal_voc/mAP'))
