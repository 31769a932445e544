# CBAM. Published: 84.5 top-1 and 109 M parameters against 84.6 and 89 M (arXiv 2301.00808, table 2e).
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = dict(type='CBAM')
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
