# X * N(X): each site is normalised by itself. Published: training is unstable (arXiv 2301.00808, table 16).
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
response_norm = dict(type='GRN', aggregation='none')
model = dict(backbone=dict(response_norm=response_norm), neck=dict(response_norm=response_norm))
