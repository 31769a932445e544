# UperNet on COCO-Stuff 164k: batch 16, 160k iterations and tests on whole images, as MMSegmentation's
# deeplabv3_r50-d8_4xb4-160k_coco-stuff164k-512x512.py. Optimizer and warm-up are those of the ADE20K recipes.
_base_ = './upernet_160k_ade20k.py'
num_classes = 171
model = dict(
    decode_head=dict(num_classes=num_classes),
    auxiliary_head=dict(num_classes=num_classes),
    test_cfg=dict(_delete_=True, mode='whole'))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes)
train_pipeline = [_base_.load, labels, _base_.resize, _base_.crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, _base_.test_resize, labels, _base_.pack]
tta_steps = [_base_.tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
own = dict(type='COCOStuffDataset', data_root='data/coco_stuff164k')
train_dataloader = dict(
    dataset=dict(
        **own, data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'),
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **own, data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
