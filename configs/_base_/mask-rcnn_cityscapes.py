# Mask R-CNN on Cityscapes instances: scales, 8 epochs of eight passes, batch 8 and step of MMDetection's
# mask-rcnn_r50_fpn_1x_cityscapes.py, which starts from a detector of COCO; this starts from ImageNet weights and keeps
# the learning rate of the COCO recipes. The annotation files are those that MMDetection's
# tools/dataset_converters/cityscapes.py writes.
_base_ = './mask-rcnn_1x_coco.py'
data_root = 'data/cityscapes/'
classes = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))
resize = dict(type='RandomResize', scale=[(2048, 800), (2048, 1024)], keep_ratio=True)
test_resize = dict(_base_.resize, scale=(2048, 1024))
train_pipeline = [_base_.load, _base_.annotations, resize, _base_.flip, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.annotations, _base_.test_pack]
own = dict(
    type='CheckedCocoDataset', data_root=data_root, metainfo=dict(classes=classes),
    filter_cfg=dict(filter_empty_gt=True, min_size=32))
train = dict(
    **own, ann_file='annotations/instancesonly_filtered_gtFine_train.json', data_prefix=dict(img='leftImg8bit/train/'),
    pipeline=train_pipeline)
ann_file = 'annotations/instancesonly_filtered_gtFine_val.json'
train_dataloader = dict(
    batch_size=1, dataset=dict(_delete_=True, type='RepeatDataset', times=8, dataset=train))
val_dataloader = dict(
    dataset=dict(**own, ann_file=ann_file, data_prefix=dict(img='leftImg8bit/val/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
# The benchmark's own AP beside COCO's; it needs cityscapesScripts. COCO's alone: val_evaluator = _base_.coco_ap
coco_ap = dict(type='CheckedCocoMetric', ann_file=data_root + ann_file, metric=['bbox', 'segm'])
cityscapes_ap = dict(
    type='CityScapesMetric', seg_prefix=data_root + 'gtFine/val',
    outfile_prefix='work_dirs/cityscapes_metric/instance')
val_evaluator = [coco_ap, cityscapes_ap]
test_evaluator = val_evaluator
epochs = 8
train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=epochs, milestones=[7], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=8)
