# Mask R-CNN on your own COCO-style data: copy this file, set classes and folder; README.md here shows each step.
_base_ = '../small/mask-rcnn_convnextv2-t_small.py'
classes = ('person', 'bicycle')  # names among the json's categories; the only place where they are counted
data_root = 'data/own/'  # train/ and val/ hold images, train.json and val.json their objects
model = dict(roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))
own = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(ann_file='train.json', data_prefix=dict(img='train/'), **own))
val_dataloader = dict(dataset=dict(ann_file='val.json', data_prefix=dict(img='val/'), **own))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator
