_base_ = './convnextv2-h_fcmae-ft_in22k-224.py'
# Published: no number; the step before fine-tuning on ImageNet-1K (arXiv 2301.00808, section 5 and table 12).
crop = dict(_base_.crop, scale=384)
train_pipeline = [_base_.load, crop, _base_.flip, _base_.augment, _base_.erase, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
