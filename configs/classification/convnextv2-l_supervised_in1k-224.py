_base_ = '../_base_/supervised_imagenet.py'
# Published: 84.5 top-1, against 85.8 from FCMAE (arXiv 2301.00808, table 14).
size = _base_.sizes.large
model = dict(
    backbone=dict(arch='large', drop_path_rate=size.supervised.drop_path_rate),
    head=dict(in_channels=size.channels[3]))
