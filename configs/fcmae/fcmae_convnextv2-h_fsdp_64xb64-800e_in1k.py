# ConvNeXt V2-Huge, FCMAE, 800 epochs, effective batch 4096, weights and optimizer states sharded over all GPUs.
_base_ = './fcmae_convnextv2-h_64xb64-800e_in1k.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='FSDP2Strategy')
