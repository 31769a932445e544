# UperNet at 640 pixels, for weights fine-tuned on ImageNet-22K (arXiv 2301.00808, appendix A.4). The public ones were
# fine-tuned on ImageNet-1K afterwards.
_base_ = './upernet_160k_ade20k.py'
crop_size = (640, 640)
model = dict(data_preprocessor=dict(size=crop_size), test_cfg=dict(crop_size=crop_size, stride=(426, 426)))
resize = dict(_base_.resize, scale=(2560, 640))
crop = dict(_base_.crop, crop_size=crop_size)
test_resize = dict(_base_.test_resize, scale=(2560, 640))
train_pipeline = [_base_.load, _base_.labels, resize, crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.labels, _base_.pack]
tta_resizes = [dict(type='Resize', scale=(int(2560 * r), int(640 * r)), keep_ratio=True) for r in _base_.tta_ratios]
tta_steps = [tta_resizes, _base_.tta_flips, [_base_.labels], [_base_.pack]]
tta_pipeline = [_base_.tta_load, dict(type='TestTimeAug', transforms=tta_steps)]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
