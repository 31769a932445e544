# Everything that depends on the size of ConvNeXt V2 (arXiv 2301.00808, tables 9 to 13; official weight URLs).
# detection, segmentation: chosen within the sweeps of appendices A.3 and A.4; larger models use more drop path.
# layer_decay: per group, for DINO, DDQ, RTMDet and Mask2Former on COCO; ConvNeXt V1's rates for Cascade Mask R-CNN at
# learning rates of 1e-4 to 2e-4 (facebookresearch/ConvNeXt, object_detection/configs).
# in22k, from22k: the released im22k files went through both steps, so the second step starts from our run of the first.
# supervised: the paper's controls of tables 6, 7 and 14, with drop path as in ConvNeXt V1 (arXiv 2201.03545, table 5).
# V2's weights are not public, so they come from our run. v1_im1k: ConvNeXt V1's released weights.
# huge, classification: table 11 prints a base learning rate of 1.25e-3 (5e-3 at batch 1024). As for base and large,
# MMPretrain's config implies 6.25e-4, but the official code has no command for huge, so the printed value is used here.
# Tables 12 and 13 do not say how blocks share a decay step; we follow each size's classification recipe.
weights = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/'
sizes = dict(
    atto=dict(
        arch='atto',
        channels=[40, 80, 160, 320],
        detection=dict(drop_path_rate=0.2),
        segmentation=dict(drop_path_rate=0.1),
        classification=dict(
            lr=0.0008, weight_decay=0.3, decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.1,
            epochs=600, warmup=0, smoothing=0.2, mixup=0.0, cutmix=0.0),
        fcmae=weights + 'pt_only/convnextv2_atto_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_atto_1k_224_ema.pt',
    ),
    femto=dict(
        arch='femto',
        channels=[48, 96, 192, 384],
        detection=dict(drop_path_rate=0.2),
        segmentation=dict(drop_path_rate=0.1),
        classification=dict(
            lr=0.0008, weight_decay=0.05, decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0,
            epochs=600, warmup=0, smoothing=0.2, mixup=0.3, cutmix=0.3),
        fcmae=weights + 'pt_only/convnextv2_femto_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_femto_1k_224_ema.pt',
    ),
    pico=dict(
        arch='pico',
        channels=[64, 128, 256, 512],
        detection=dict(drop_path_rate=0.2),
        segmentation=dict(drop_path_rate=0.1),
        classification=dict(
            lr=0.0008, weight_decay=0.3, decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0,
            epochs=600, warmup=0, smoothing=0.2, mixup=0.3, cutmix=0.3),
        fcmae=weights + 'pt_only/convnextv2_pico_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_pico_1k_224_ema.pt',
    ),
    nano=dict(
        arch='nano',
        channels=[80, 160, 320, 640],
        detection=dict(drop_path_rate=0.2),
        segmentation=dict(drop_path_rate=0.1),
        classification=dict(
            lr=0.0008, weight_decay=0.3, decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.1,
            epochs=600, warmup=0, smoothing=0.2, mixup=0.5, cutmix=0.5),
        in22k=dict(decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0),
        from22k=dict(
            decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.1, epochs=90,
            checkpoint='work_dirs/convnextv2-n_fcmae-ft_in22k-224/epoch_90.pth'),
        fcmae=weights + 'pt_only/convnextv2_nano_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_nano_1k_224_ema.pt',
        im22k_224=weights + 'im22k/convnextv2_nano_22k_224_ema.pt',
        im22k_384=weights + 'im22k/convnextv2_nano_22k_384_ema.pt',
    ),
    tiny=dict(
        arch='tiny',
        channels=[96, 192, 384, 768],
        detection=dict(drop_path_rate=0.3),
        segmentation=dict(drop_path_rate=0.2),
        layer_decay=0.7,
        classification=dict(
            lr=0.0032, weight_decay=0.05, decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.2,
            epochs=300, warmup=40, smoothing=0.1, mixup=0.8, cutmix=1.0),
        in22k=dict(decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.0),
        from22k=dict(
            decay_rate=0.9, decay_type='layer_wise', drop_path_rate=0.1, epochs=90,
            checkpoint='work_dirs/convnextv2-t_fcmae-ft_in22k-224/epoch_90.pth'),
        fcmae=weights + 'pt_only/convnextv2_tiny_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_tiny_1k_224_ema.pt',
        im22k_224=weights + 'im22k/convnextv2_tiny_22k_224_ema.pt',
        im22k_384=weights + 'im22k/convnextv2_tiny_22k_384_ema.pt',
    ),
    base=dict(
        arch='base',
        channels=[128, 256, 512, 1024],
        detection=dict(drop_path_rate=0.4),
        segmentation=dict(drop_path_rate=0.3),
        layer_decay=0.8,
        classification=dict(
            lr=0.0025, weight_decay=0.05, decay_rate=0.6, decay_type='group_wise', drop_path_rate=0.1,
            epochs=100, warmup=20, smoothing=0.1, mixup=0.8, cutmix=1.0),
        supervised=dict(
            drop_path_rate=0.5, checkpoint='work_dirs/convnextv2-b_supervised_in1k-224/epoch_300.pth'),
        in22k=dict(decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.1),
        from22k=dict(
            decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.2, epochs=30,
            checkpoint='work_dirs/convnextv2-b_fcmae-ft_in22k-224/epoch_90.pth'),
        fcmae=weights + 'pt_only/convnextv2_base_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_base_1k_224_ema.pt',
        v1_im1k='https://dl.fbaipublicfiles.com/convnext/convnext_base_1k_224_ema.pth',
        im22k_224=weights + 'im22k/convnextv2_base_22k_224_ema.pt',
        im22k_384=weights + 'im22k/convnextv2_base_22k_384_ema.pt',
    ),
    large=dict(
        arch='large',
        channels=[192, 384, 768, 1536],
        detection=dict(drop_path_rate=0.5),
        segmentation=dict(drop_path_rate=0.4),
        layer_decay=0.7,
        classification=dict(
            lr=0.0025, weight_decay=0.05, decay_rate=0.6, decay_type='group_wise', drop_path_rate=0.2,
            epochs=100, warmup=20, smoothing=0.1, mixup=0.8, cutmix=1.0),
        supervised=dict(
            drop_path_rate=0.5, checkpoint='work_dirs/convnextv2-l_supervised_in1k-224/epoch_300.pth'),
        in22k=dict(decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.1),
        from22k=dict(
            decay_rate=0.8, decay_type='group_wise', drop_path_rate=0.3, epochs=30,
            checkpoint='work_dirs/convnextv2-l_fcmae-ft_in22k-224/epoch_90.pth'),
        fcmae=weights + 'pt_only/convnextv2_large_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_large_1k_224_ema.pt',
        v1_im1k='https://dl.fbaipublicfiles.com/convnext/convnext_large_1k_224_ema.pth',
        im22k_224=weights + 'im22k/convnextv2_large_22k_224_ema.pt',
        im22k_384=weights + 'im22k/convnextv2_large_22k_384_ema.pt',
    ),
    huge=dict(
        arch='huge',
        channels=[352, 704, 1408, 2816],
        detection=dict(drop_path_rate=0.5),
        segmentation=dict(drop_path_rate=0.4),
        classification=dict(
            lr=0.005, weight_decay=0.05, decay_rate=0.75, decay_type='layer_wise', drop_path_rate=0.3,
            epochs=50, warmup=10, smoothing=0.1, mixup=0.8, cutmix=1.0),
        in22k=dict(decay_rate=0.8, decay_type='layer_wise', drop_path_rate=0.3),
        from22k=dict(
            decay_rate=0.85, decay_type='layer_wise', drop_path_rate=0.5, epochs=30,
            checkpoint='work_dirs/convnextv2-h_fcmae-ft_in22k-224/epoch_90.pth'),
        fcmae=weights + 'pt_only/convnextv2_huge_1k_224_fcmae.pt',
        im1k=weights + 'im1k/convnextv2_huge_1k_224_ema.pt',
        im22k_384=weights + 'im22k/convnextv2_huge_22k_384_ema.pt',
        im22k_512=weights + 'im22k/convnextv2_huge_22k_512_ema.pt',
    ),
)
