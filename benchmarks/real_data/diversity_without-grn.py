# Twin of diversity_with-grn.py with the blocks of ConvNeXt V1: no GRN, LayerScale in the encoder.
_base_ = './diversity_with-grn.py'
model = dict(backbone=dict(response_norm=None, layer_scale_init_value=1e-6), neck=dict(response_norm=None))
