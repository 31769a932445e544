# UperNet on Cityscapes: crops of 512x1024, batch 16, 90k iterations and tests on whole images, as MMSegmentation's
# mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py, the closest recipe of a hierarchical backbone at
# this crop size. Optimizer and warm-up are those of the ADE20K recipes.
_base_ = './upernet_160k_ade20k.py'
num_classes = 19
crop_size = (512, 1024)
scale = (2048, 1024)
iterations = 90000
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
    test_cfg=dict(_delete_=True, mode='whole'))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes)
resize = dict(_base_.resize, scale=scale)
crop = dict(_base_.crop, crop_size=crop_size)
test_resize = dict(_base_.test_resize, scale=scale)
train_pipeline = [_base_.load, labels, resize, crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, labels, _base_.pack]
tta_resizes = [dict(type='Resize', scale=(int(2048 * r), int(1024 * r)), keep_ratio=True) for r in _base_.tta_ratios]
tta_steps = [tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
own = dict(type='CityscapesDataset', data_root='data/cityscapes/')
train_dataloader = dict(
    dataset=dict(
        **own, data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'), pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **own, data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'), pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=iterations, val_interval=iterations // 10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=iterations // 10))
