# Mask ratio 0.8. Published as a curve without a table: 0.6 is best, 0.5 to 0.7 is flat (arXiv 2301.00808, figure 8).
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
mask = dict(_base_.mask, mask_ratio=0.8)
train_pipeline = [_base_.load, _base_.crop, _base_.flip, mask, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
