# UperNet-Atto on CamVid at 240 x 180 with crops of 128 pixels: 300 iterations, so that many runs fit into an hour.
_base_ = '../real_data/upernet_camvid_hour.py'
num_iters = 300
scale, crop_size = (240, 180), (128, 128)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=None)),
)
load, annotations, resize, crop, *rest = _base_.train_dataloader.dataset.pipeline
train_pipeline = [load, annotations, dict(resize, scale=scale), dict(crop, crop_size=crop_size), *rest]
test_pipeline = [load, dict(type='Resize', scale=scale, keep_ratio=True), annotations, dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=num_iters, val_interval=num_iters // 2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=20, end=num_iters),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=num_iters))
