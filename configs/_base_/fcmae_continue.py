# Continued FCMAE on your own images, without labels, from published or own weights (FCMAEPretrained), one GPU or a CPU.
# The base learning rate of 1.5e-4 per 256 images is that of the published pretraining. For other channels set
# model.backbone.in_channels and the preprocessor's mean and std: the stem and the prediction layer adapt.
_base_ = ['./sizes.py', './fcmae.py']
num_epochs = 100
warmup_epochs = 5
base_batch = 256
train_dataloader = dict(dataset=dict(data_root='data/images'))
optim_wrapper = dict(accumulative_counts=base_batch // _base_.batch_size, optimizer=dict(lr=1.5e-4 * base_batch / 256))
auto_scale_lr = dict(base_batch_size=base_batch)
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    dict(_base_.warmup, end=warmup_epochs), dict(_base_.cosine, begin=warmup_epochs, end=num_epochs)]
