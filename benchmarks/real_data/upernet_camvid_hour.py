# UperNet-Atto on CamVid for one hour on a CPU: narrow heads, fp32, the same learning rate for all layers.
_base_ = './upernet_camvid.py'
num_iters = 4000
scale, crop_size = (320, 240), (224, 224)
model = dict(backbone=dict(drop_path_rate=0.0), decode_head=dict(channels=64), auxiliary_head=dict(channels=64))
load, annotations, _, *rest = _base_.train_pipeline
resize = dict(type='RandomResize', scale=scale, ratio_range=(0.75, 2.0), keep_ratio=True)
crop = dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        pipeline=[
            load,
            annotations,
            resize,
            crop,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ]
    ),
)
train_cfg = dict(max_iters=num_iters, val_interval=500)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=100, end=num_iters),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500, max_keep_ckpts=1))
randomness = dict(seed=0)
