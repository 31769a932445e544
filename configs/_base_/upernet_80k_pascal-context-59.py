# The same without background: label 0 is ignored, and the other 59 are numbered from 0.
_base_ = './upernet_80k_pascal-context.py'
num_classes = 59
model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))
labels = dict(type='LoadCheckedLabels', num_classes=num_classes, reduce_zero_label=True)
train_pipeline = [_base_.load, labels, _base_.resize, _base_.crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, _base_.test_resize, labels, _base_.pack]
tta_steps = [_base_.tta_resizes, _base_.tta_flips, [labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
train_dataloader = dict(dataset=dict(type='PascalContextDataset59', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='PascalContextDataset59', pipeline=test_pipeline))
test_dataloader = val_dataloader
