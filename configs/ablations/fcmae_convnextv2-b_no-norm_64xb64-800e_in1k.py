# X: no response norm, and no LayerScale, which is our reading. Published: 83.9 top-1 against 84.6
# (arXiv 2301.00808, table 16).
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = None
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
