# GRN in pretraining, dropped in fine-tuning. Published: 78.8 top-1 against 84.6 (arXiv 2301.00808, table 2f).
_base_ = '../classification/convnextv2-b_fcmae-ft_in1k-224.py'
pretrained = 'work_dirs/fcmae_convnextv2-b_64xb64-800e_in1k/epoch_800.pth'
model = dict(backbone=dict(response_norm=None, init_cfg=dict(checkpoint=pretrained, grn='drop')))
