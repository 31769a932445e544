_base_ = './upernet_convnextv2-b_160k_ade20k-512x512.py'
# Published: 49.9 mIoU (multi-scale) ConvNeXt V1 from supervised training (arXiv 2301.00808, table 7).
model = dict(
    backbone=dict(
        response_norm=None, layer_scale_init_value=1e-6, init_cfg=dict(checkpoint=_base_.size.v1_im1k)))
