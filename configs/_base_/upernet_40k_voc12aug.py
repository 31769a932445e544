# UperNet on Pascal VOC 2012 with the additional annotations of SBD: batch 16, 40k iterations and tests on whole images,
# as MMSegmentation's upernet_r50_4xb4-40k_voc12aug-512x512.py. Optimizer and warm-up are those of the ADE20K recipes.
_base_ = './upernet_160k_ade20k.py'
num_classes = 21
iterations = 40000
model = dict(
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
    test_cfg=dict(_delete_=True, mode='whole'))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes)
train_pipeline = [_base_.load, labels, _base_.resize, _base_.crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, _base_.test_resize, labels, _base_.pack]
tta_steps = [_base_.tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
own = dict(type='PascalVOCDataset', data_root='data/VOCdevkit/VOC2012')
parts = [
    dict(
        **own, ann_file=f'ImageSets/Segmentation/{split}.txt', pipeline=train_pipeline,
        data_prefix=dict(img_path='JPEGImages', seg_map_path=folder))
    for split, folder in (('train', 'SegmentationClass'), ('aug', 'SegmentationClassAug'))
]
train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=parts))
val_dataloader = dict(
    dataset=dict(
        **own, ann_file='ImageSets/Segmentation/val.txt', pipeline=test_pipeline,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass')))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=iterations, val_interval=iterations // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=iterations // 10))
