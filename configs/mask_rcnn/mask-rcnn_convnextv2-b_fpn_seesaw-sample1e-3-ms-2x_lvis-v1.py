_base_ = './mask-rcnn_convnextv2-b_fpn_sample1e-3-ms-1x_lvis-v1.py'
# Published: none. Seesaw loss (arXiv 2008.10032) on cosine logits for 24 epochs, with the values of MMDetection's
# mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py. The temperature's key is spelt as MMDetection spells it.
model = dict(
    roi_head=dict(
        bbox_head=dict(
            cls_predictor_cfg=dict(type='NormedLinear', tempearture=20),  # codespell:ignore
            loss_cls=dict(
                _delete_=True, type='SeesawLoss', p=0.8, q=2.0, num_classes=_base_.num_classes, loss_weight=1.0))))
train_cfg = dict(max_epochs=24, val_interval=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1)
]
