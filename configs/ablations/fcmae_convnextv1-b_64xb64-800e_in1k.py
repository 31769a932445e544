# FCMAE on ConvNeXt V1-Base, 800 epochs, effective batch 4096: the setting of the paper's pretraining ablations.
# Published: 83.7 top-1 after fine-tuning, 7.7 hours of pretraining (arXiv 2301.00808, section 3.1). It uses
# the ConvNeXt block as decoder, depth 1, width 512 and mask ratio 0.6. Blocks without GRN in the decoder are our pick.
_base_ = '../fcmae/fcmae_convnextv2-b_64xb64-800e_in1k.py'
model = dict(
    backbone=dict(response_norm=None, layer_scale_init_value=1e-6),
    neck=dict(response_norm=None))
