# Mask R-CNN on LVIS v1: repeat-factor sampling at 1e-3, short edges of 640 to 800 pixels, 12 epochs, 300 objects per
# image above a score of 1e-4, as MMDetection's mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py; plain NMS, since soft-NMS
# keeps boxes of all 1203 classes. Optimizer and batch are those of the COCO recipes.
_base_ = './mask-rcnn_1x_coco.py'
custom_imports = dict(imports=_base_.custom_imports.imports + ['mmconvnextv2.datasets.lvis'])
data_root = 'data/lvis_v1/'
num_classes = 1203
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, max_per_img=300, nms=dict(type='nms'))))
scales = [(1333, short) for short in range(640, 801, 32)]
resize = dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)
train_pipeline = [_base_.load, _base_.annotations, resize, _base_.flip, _base_.pack]
own = dict(type='CheckedLVISDataset', data_root=data_root, data_prefix=dict(img=''))
train = dict(
    **own, ann_file='annotations/lvis_v1_train.json', filter_cfg=dict(filter_empty_gt=True, min_size=32),
    pipeline=train_pipeline)
train_dataloader = dict(
    dataset=dict(_delete_=True, type='ClassBalancedDataset', oversample_thr=1e-3, dataset=train))
val_dataloader = dict(dataset=dict(**own, ann_file='annotations/lvis_v1_val.json'))
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='LVISMetric', ann_file=data_root + 'annotations/lvis_v1_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='lvis/segm_AP', rule='greater'))
