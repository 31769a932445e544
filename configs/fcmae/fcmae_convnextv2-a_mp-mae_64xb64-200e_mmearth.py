# ConvNeXt V2-Atto, MP-MAE on MMEarth (arXiv 2405.02771), 200 epochs, effective batch 4096, 112 pixels, cells of 16.
_base_ = '../_base_/fcmae_mp-mae.py'
model = dict(backbone=dict(arch='atto'))
