# As fcmae_continue.py, for 300 epochs.
_base_ = './fcmae_continue.py'
num_epochs = 300
warmup_epochs = 15
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    dict(_base_.warmup, end=warmup_epochs), dict(_base_.cosine, begin=warmup_epochs, end=num_epochs)]
