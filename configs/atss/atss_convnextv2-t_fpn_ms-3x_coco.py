_base_ = './atss_convnextv2-t_fpn_1x_coco.py'
# Published: none. Scales of 480 to 800, 36 epochs, batch 16, AdamW at 1e-4 and a weight decay of 0.05, as Swin trains
# ATSS (arXiv 2103.14030, section 4.2); warm-up and steps of the other recipes of 36 epochs.
train_dataloader = dict(dataset=dict(pipeline=_base_.ms_pipeline))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.schedule_3x
