# As upernet_own-classes.py for .npy arrays (height, width, 5), such as satellite bands.
_base_ = './upernet_own-classes.py'
custom_imports = dict(
    imports=['mmconvnextv2', 'mmconvnextv2.datasets.segmentation', 'mmconvnextv2.pretrain'], allow_failed_imports=False)
channels = 5
model = dict(
    # one value a band, of your images
    data_preprocessor=dict(mean=[110.] * channels, std=[60.] * channels, bgr_to_rgb=False),
    backbone=dict(in_channels=channels))
load = dict(type='mmpretrain.LoadMultiChannelImage', channels=channels)
train_pipeline = [load, _base_.own_labels, _base_.resize, _base_.crop, _base_.flip, _base_.pack]
test_pipeline = [load, _base_.test_resize, _base_.own_labels, _base_.pack]
train_dataloader = dict(dataset=dict(img_suffix='.npy', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(img_suffix='.npy', pipeline=test_pipeline))
test_dataloader = val_dataloader
