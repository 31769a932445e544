_base_ = './upernet_convnextv2-b_160k_ade20k-512x512.py'
# Published: 50.5 mIoU (multi-scale) from supervised training (arXiv 2301.00808, table 7).
model = dict(backbone=dict(init_cfg=dict(checkpoint=_base_.size.supervised.checkpoint)))
