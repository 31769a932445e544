_base_ = './mask-rcnn_convnextv2-b_fpn_lsj-3x_coco.py'
# Published: 50.3 box AP, 44.9 mask AP ConvNeXt V1 from supervised training (arXiv 2301.00808, table 6).
model = dict(
    backbone=dict(
        response_norm=None, layer_scale_init_value=1e-6, init_cfg=dict(checkpoint=_base_.size.v1_im1k)))
