# The name of 0.1, until 0.4.
_base_ = './fcmae_convnextv2-n_64xb64-800e_in1k.py'
