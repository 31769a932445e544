# GRN that standardises the norms over channels. Published: 84.5 top-1 against 84.6 (arXiv 2301.00808, table 2b).
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = dict(type='GRN', normalization='standardize')
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
