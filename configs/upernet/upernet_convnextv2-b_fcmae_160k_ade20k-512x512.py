_base_ = './upernet_convnextv2-b_160k_ade20k-512x512.py'
# Published: none from raw FCMAE weights; the paper starts from fine-tuned ones.
model = dict(backbone=dict(init_cfg=dict(checkpoint=_base_.sizes.base.fcmae)))
