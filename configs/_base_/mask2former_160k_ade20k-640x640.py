# Mask2Former for ADE20K with crops of 640, as the official ConvNeXt-B config
# (facebookresearch/Mask2Former, maskformer2_convnext_base_384_160k_res640) and MMSegmentation's Swin-B and Swin-L ones.
_base_ = './mask2former_160k_ade20k-512x512.py'
side = 640
model = dict(data_preprocessor=dict(size=(side, side)))
resize = dict(_base_.resize, scales=[side * tenths // 10 for tenths in range(5, 21)], max_size=4 * side)
crop = dict(_base_.crop, crop_size=(side, side))
test_resize = dict(_base_.test_resize, scale=(4 * side, side))
train_pipeline = [_base_.load, _base_.labels, resize, crop, _base_.flip, _base_.colour, _base_.pack]
test_pipeline = [_base_.load, test_resize, _base_.labels, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
