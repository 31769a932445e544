# What all Mask2Former recipes share; bases read it as _base_.mask2former.
# AdamW 1e-4, weight decay 0.05 and clipping at 0.01 are upstream's, as is the exemption of queries and of the decoder's
# level embedding from weight decay; norms, biases and GRN are exempt by the constructor. Layer decay replaces the
# backbone's 0.1.
_base_ = './backbone.py'
mask2former = dict(
    backbone=dict(_base_.backbone, _delete_=True),
    optim_wrapper=dict(
        _delete_=True,
        type='BF16OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
        clip_grad=dict(max_norm=0.01, norm_type=2),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(
            decay_rate=0.8,
            decay_type='group_wise',
            custom_keys={name: dict(decay_mult=0.0) for name in ('query_embed', 'query_feat', 'level_embed')})))
