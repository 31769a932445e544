# RetinaNet with MMDetection's FPN and head; boxes are predicted in float32.
_base_ = ['./detection_coco.py', 'mmdet::_base_/models/retinanet_r50_fpn.py']
model = dict(backbone=dict(_delete_=True, **_base_.backbone), bbox_head=dict(type='FP32RetinaHead'))
