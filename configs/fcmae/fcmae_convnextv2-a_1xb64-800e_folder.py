# Your own images: every image below data_root, no labels needed, one GPU or a CPU.
# The learning rate below is for batch 64; with another batch add --auto-scale-lr.
_base_ = './fcmae_convnextv2-a_64xb64-800e_in1k.py'
train_dataloader = dict(dataset=dict(data_root='data/images'))
base_batch = 64
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * base_batch / 256))
auto_scale_lr = dict(base_batch_size=base_batch)
