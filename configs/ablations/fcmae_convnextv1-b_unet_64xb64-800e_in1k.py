# A UNet without skip connections as decoder. Published: 83.5 top-1 (arXiv 2301.00808, section 3.1).
# Widths and depth are our picks.
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
model = dict(neck=dict(_delete_=True, type='FCMAEUNetDecoder', channels=512, depth=1, response_norm=None))
