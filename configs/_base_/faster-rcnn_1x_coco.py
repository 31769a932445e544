# Faster R-CNN with MMDetection's FPN, RPN and heads; boxes are predicted and pooled in float32.
_base_ = ['./detection_coco.py', 'mmdet::_base_/models/faster-rcnn_r50_fpn.py']
model = dict(
    backbone=dict(_delete_=True, **_base_.backbone),
    rpn_head=dict(type='FP32RPNHead'),
    roi_head=dict(bbox_roi_extractor=dict(type='FP32SingleRoIExtractor')))
