_base_ = './mask-rcnn_convnextv2-l_fpn_lsj-3x_coco.py'
# Published: 51.5 box AP, 45.8 mask AP from supervised training (arXiv 2301.00808, table 6).
model = dict(backbone=dict(init_cfg=dict(checkpoint=_base_.size.supervised.checkpoint)))
