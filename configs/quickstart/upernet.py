# UperNet on the embedded data set: small images without augmentation but flips.
_base_ = '../small/upernet_convnextv2-a_small.py'
num_iters = 400
data_root = 'work_dirs/quickstart/data/ade'
metainfo = dict(classes=('plain', 'stripes', 'marble', 'tiles', 'disc', 'square', 'triangle', 'star', 'ring', 'cross'))
num_classes = len(metainfo['classes'])
crop_size = (128, 128)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(drop_path_rate=0., frozen_stages=0),
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes, reduce_zero_label=True)
train_pipeline = [dict(type='LoadImageFromFile'), labels, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), labels, dict(type='PackSegInputs')]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(int(128 * one), int(128 * one)), keep_ratio=True) for one in _base_.tta_ratios],
        [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0., 1.)],
        [labels], [dict(type='PackSegInputs')]])]
dataset = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo, reduce_zero_label=True,
               img_suffix='.png', seg_map_suffix='.png', _delete_=True)
train_dataloader = dict(
    num_workers=1,
    dataset=dict(**dataset, pipeline=train_pipeline,
                 data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1, num_workers=1,
    dataset=dict(**dataset, pipeline=test_pipeline,
                 data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=1.0))
train_cfg = dict(max_iters=num_iters, val_interval=num_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=num_iters, eta_min=1e-5)]
default_hooks = dict(
    logger=dict(interval=5), checkpoint=dict(interval=num_iters))
randomness = dict(seed=0)
