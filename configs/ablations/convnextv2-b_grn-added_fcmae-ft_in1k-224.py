# GRN in fine-tuning alone, on V1-Base as it was pretrained. Published: 80.6 top-1; with GRN in both 84.6, in neither
# 83.7 (arXiv 2301.00808, table 2f). That LayerScale stays, so that fine-tuning starts where pretraining ended, is ours.
_base_ = '../classification/convnextv2-b_fcmae-ft_in1k-224.py'
pretrained = 'work_dirs/fcmae_convnextv1-b_64xb64-800e_in1k/epoch_800.pth'
model = dict(backbone=dict(layer_scale_init_value=1e-6, init_cfg=dict(checkpoint=pretrained, grn='add')))
