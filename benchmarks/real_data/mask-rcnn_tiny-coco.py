# Mask R-CNN-Atto with the full-size heads on 50 + 50 COCO images; small images, few iterations.
_base_ = '../../configs/mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py'
scale = (256, 256)
model = dict(data_preprocessor=dict(batch_augments=[dict(type='BatchFixedSizePad', size=scale, pad_mask=True)]))
load, annotations, resize, crop, *rest = _base_.train_pipeline
test_load, test_resize, *test_rest = _base_.test_pipeline
test_pipeline = [test_load, {**test_resize, 'scale': scale}, *test_rest]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        pipeline=[
            load,
            annotations,
            {**resize, 'scale': scale, 'ratio_range': (0.8, 1.5)},
            {**crop, 'crop_size': scale},
            *rest,
        ]
    ),
)
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=40, val_interval=1000)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20)]
optim_wrapper = dict(optimizer=dict(lr=4e-4))
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(by_epoch=False, interval=40))
log_processor = dict(window_size=5, by_epoch=False)
