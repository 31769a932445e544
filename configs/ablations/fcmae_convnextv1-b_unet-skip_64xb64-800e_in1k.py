# A UNet with skip connections as decoder. Published: 83.7 top-1, 12.9 hours (arXiv 2301.00808, section 3.1).
# Widths, depth and the way skips join are our picks.
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
model = dict(
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(_delete_=True, type='FCMAEUNetDecoder', channels=512, depth=1, skips=True, response_norm=None))
