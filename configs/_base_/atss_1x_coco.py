# ATSS (arXiv 1912.02424) as what it changes of RetinaNet, with the values of MMDetection's atss_r50_fpn_1x_coco.py: one
# square anchor per site, assignment by statistics of IoU, GIoU of decoded boxes, centre-ness; extra levels from P5.
_base_ = './retinanet_1x_coco.py'
model = dict(
    type='ATSS',
    neck=dict(add_extra_convs='on_output'),
    bbox_head=dict(
        type='FP32ATSSHead',
        anchor_generator=dict(ratios=[1.0], octave_base_scale=8, scales_per_octave=1),
        bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9)),
    test_cfg=dict(nms=dict(iou_threshold=0.6)))
