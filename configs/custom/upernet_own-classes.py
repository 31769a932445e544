# UperNet on your own images and label PNGs: copy this file, set classes and folder; README.md here shows each step.
_base_ = '../small/upernet_convnextv2-t_small.py'
classes = ('road', 'building', 'tree')  # labels 0, 1, 2 in the PNGs; the only place where they are counted
data_root = 'data/own'  # images/{train,val}/NAME.jpg and labels/{train,val}/NAME.png
model = dict(decode_head=dict(num_classes=len(classes)), auxiliary_head=dict(num_classes=len(classes)))
own_labels = dict(type='LoadCheckedLabels', num_classes=len(classes))
train_pipeline = [_base_.load, own_labels, _base_.resize, _base_.crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, _base_.test_resize, own_labels, _base_.pack]
own = dict(type='BaseSegDataset', data_root=data_root, metainfo=dict(classes=classes), img_suffix='.jpg',
           seg_map_suffix='.png', _delete_=True)
train_dataloader = dict(dataset=dict(
    pipeline=train_pipeline, data_prefix=dict(img_path='images/train', seg_map_path='labels/train'), **own))
val_dataloader = dict(dataset=dict(
    pipeline=test_pipeline, data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), **own))
test_dataloader = val_dataloader
tta_steps = [_base_.tta_resizes, _base_.tta_flips, [own_labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
