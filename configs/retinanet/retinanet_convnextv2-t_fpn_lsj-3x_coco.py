_base_ = './retinanet_convnextv2-t_fpn_1x_coco.py'
# Published: none. Large-scale jitter, 36 epochs at batch 32 and raw FCMAE weights, as the Mask R-CNN recipes.
model = dict(
    data_preprocessor=dict(batch_augments=_base_.lsj_padding),
    backbone=dict(init_cfg=dict(checkpoint=_base_.size.fcmae)))
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=_base_.lsj_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.schedule_3x
auto_scale_lr = dict(base_batch_size=32)
