# GRN without its residual. Published: 84.0 top-1 against 84.6 (arXiv 2301.00808, table 2c). That gamma then starts
# at 1 is our pick.
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = dict(type='GRN', residual=False)
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
