# A Transformer as decoder. Published: 83.4 top-1, 8.5 hours (arXiv 2301.00808, section 3.1).
# Depth, width and heads are our picks, those of MAE's decoder (arXiv 2111.06377).
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
model = dict(neck=dict(_delete_=True, type='FCMAETransformerDecoder', channels=512, depth=8, num_heads=16))
