# GRN of the L1 norm of each channel instead of its L2 norm. Published: 84.3 top-1 against 84.6
# (arXiv 2301.00808, table 2a).
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = dict(type='GRN', aggregation='L1')
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
