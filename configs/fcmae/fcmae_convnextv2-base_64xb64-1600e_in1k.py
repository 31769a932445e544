# The name of 0.1, until 0.4.
_base_ = './fcmae_convnextv2-b_64xb64-1600e_in1k.py'
