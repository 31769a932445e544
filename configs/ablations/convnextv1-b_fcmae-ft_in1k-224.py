# GRN in neither: V1-Base, pretrained by FCMAE and fine-tuned. Published: 83.7 top-1 (arXiv 2301.00808, tables 2d, 2f).
_base_ = '../classification/convnextv2-b_fcmae-ft_in1k-224.py'
pretrained = 'work_dirs/fcmae_convnextv1-b_64xb64-800e_in1k/epoch_800.pth'
model = dict(
    backbone=dict(response_norm=None, layer_scale_init_value=1e-6, init_cfg=dict(checkpoint=pretrained)))
