# UperNet on 20 to 2,000 images of your own with label PNGs. Leaves set the size.
# max_iters is the length; the schedule, evaluations and checkpoints follow from it.
_base_ = './upernet_160k_ade20k.py'
max_iters = 1000
classes = ('road', 'building', 'tree')  # labels 0, 1, 2 in the PNGs
data_root = 'data/own'  # images/{train,val}/NAME.jpg and labels/{train,val}/NAME.png
crop_size = (320, 320)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='atto', drop_path_rate=0.1, frozen_stages=1),
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=dict(num_classes=len(classes)),
    test_cfg=dict(_delete_=True, mode='whole'))
scale = (2048, 320)
labels = dict(type='LoadCheckedLabels', num_classes=len(classes))  # ADE20K's own shift labels by one
resize = dict(_base_.resize, scale=scale)
crop = dict(_base_.crop, crop_size=crop_size)
test_resize = dict(_base_.test_resize, scale=scale)
train_pipeline = [_base_.load, labels, resize, crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, labels, _base_.pack]
own = dict(
    _delete_=True, type='BaseSegDataset', data_root=data_root, metainfo=dict(classes=classes), img_suffix='.jpg',
    seg_map_suffix='.png')
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(
    data_prefix=dict(img_path='images/train', seg_map_path='labels/train'), pipeline=train_pipeline, **own))
val_dataloader = dict(num_workers=2, dataset=dict(
    data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), pipeline=test_pipeline, **own))
test_dataloader = val_dataloader
tta_resizes = [dict(type='Resize', scale=(int(2048 * r), int(320 * r)), keep_ratio=True) for r in _base_.tta_ratios]
tta_steps = [tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=max_iters // 20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=max_iters // 20, end=max_iters, eta_min_ratio=0.01)]
# float32, since many CPUs and older GPUs are slow in bfloat16; --amp selects bfloat16
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.6))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=max_iters // 5, max_keep_ckpts=1))
