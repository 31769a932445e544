# Mask ratio 0.7. Published as a curve without a table: 0.6 is best, 0.5 to 0.7 is flat (arXiv 2301.00808, figure 8).
_base_ = './fcmae_convnextv1-b_64xb64-800e_in1k.py'
mask_ratio = 0.7
train_pipeline = [
    {**one, 'mask_ratio': mask_ratio} if one['type'] == 'FCMAEMaskGenerator' else one for one in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
