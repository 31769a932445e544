# A decoder of 8 blocks. Published: 83.6 top-1 against 83.7 with 1 (arXiv 2301.00808).
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
model = dict(neck=dict(depth=8))
