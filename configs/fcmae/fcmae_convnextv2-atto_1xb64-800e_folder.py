# The name of 0.1, until 0.4.
_base_ = './fcmae_convnextv2-a_1xb64-800e_folder.py'
