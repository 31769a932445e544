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
plain = [step for step in _base_.train_pipeline[1:] if step['type'] != 'PhotoMetricDistortion']
train_dataloader = dict(dataset=dict(img_suffix='.npy', pipeline=[load, *plain]))
val_dataloader = dict(dataset=dict(img_suffix='.npy', pipeline=[load, *_base_.test_pipeline[1:]]))
test_dataloader = val_dataloader
