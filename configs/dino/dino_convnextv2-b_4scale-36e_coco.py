_base_ = './dino_convnextv2-b_4scale-12e_coco.py'
# Published: none with this backbone. Step after 30 epochs as in MMDetection's dino-4scale_r50_8xb2-36e_coco.
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[30], gamma=0.1)
]
