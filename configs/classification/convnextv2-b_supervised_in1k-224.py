_base_ = '../_base_/supervised_imagenet.py'
# Published: 84.3 top-1, against 84.9 from FCMAE (arXiv 2301.00808, table 14).
size = _base_.sizes.base
model = dict(
    backbone=dict(arch='base', drop_path_rate=size.supervised.drop_path_rate),
    head=dict(in_channels=size.channels[3]))
