# UperNet on the 60 classes of Pascal Context (background and 59): images within 520x520, crops of 480, batch 16, 80k
# iterations and windows of MMSegmentation's deeplabv3_r50-d8_4xb4-80k_pascal-context-480x480.py. Optimizer and warm-up
# are those of the ADE20K recipes.
_base_ = './upernet_160k_ade20k.py'
num_classes = 60
crop_size = (480, 480)
scale = (520, 520)
iterations = 80000
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
    test_cfg=dict(crop_size=crop_size, stride=(320, 320)))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes)
resize = dict(_base_.resize, scale=scale)
crop = dict(_base_.crop, crop_size=crop_size)
test_resize = dict(_base_.test_resize, scale=scale)
train_pipeline = [_base_.load, labels, resize, crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, labels, _base_.pack]
tta_resizes = [dict(type='Resize', scale=(int(520 * r), int(520 * r)), keep_ratio=True) for r in _base_.tta_ratios]
tta_steps = [tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
own = dict(
    type='PascalContextDataset', data_root='data/VOCdevkit/VOC2010/',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'))
train_dataloader = dict(
    dataset=dict(**own, ann_file='ImageSets/SegmentationContext/train.txt', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**own, ann_file='ImageSets/SegmentationContext/val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=iterations, val_interval=iterations // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=iterations // 10))
