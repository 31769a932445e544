"""Rasters and models for tests of large images."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmconvnextv2.utils.config import import_scope

NARROW = dict(depths=(1, 1, 2, 1), channels=(4, 6, 8, 10))
CLASSES = ('field', 'forest', 'water', 'road', 'house')
PALETTE = [(200, 180, 40), (20, 120, 20), (20, 60, 200), (90, 90, 90), (220, 40, 40)]


def write_raster(path, values, nodata=None, crs='EPSG:32633', block=64, **options):
    """Write values (H, W, bands) as a tiled GeoTIFF with pixels of 10 m."""
    import rasterio
    from rasterio.transform import from_origin

    place = dict(crs=crs, transform=from_origin(500000, 5000000, 10, 10)) if crs else {}
    tiled = dict(tiled=True, blockxsize=block, blockysize=block) if block else {}
    height, width, count = values.shape
    with rasterio.open(
        path,
        'w',
        **dict(driver='GTiff', compress='deflate', **tiled, **place) | options,
        height=height,
        width=width,
        count=count,
        dtype=values.dtype.name,
        nodata=nodata,
    ) as file:
        file.write(values.transpose(2, 0, 1))
    return str(path)


def scene(height, width, bands=3, seed=0):
    """Return smooth random values, uint8 (H, W, bands), whose statistics change over the image."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.random((1, bands, height // 16 + 2, width // 16 + 2), np.float32))
    smooth = nn.functional.interpolate(coarse, (height, width), mode='bicubic')[0].permute(1, 2, 0).numpy()
    ramp = np.linspace(0.2, 1.2, width, dtype=np.float32)[None, :, None]
    noise = generator.normal(0, 0.05, (height, width, bands))
    return ((smooth * ramp + noise) * 230 + 5).clip(1, 255).astype(np.uint8)


def segmentor_config(bands=3, head='UPerHead', **backbone):
    """Return the config of a narrow segmentor, with both sides of images padded to multiples of 32 pixels."""
    load = dict(type='LoadImageFromFile')
    if bands != 3:
        load = dict(type='mmpretrain.LoadMultiChannelImage', channels=bands)
    channels = list(NARROW['channels'])
    heads = dict(
        UPerHead=dict(in_channels=channels, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6)),
        FPNHead=dict(in_channels=[8] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32]),
        FCNHead=dict(in_channels=channels[2], in_index=2),
        PSPHead=dict(in_channels=channels[3], in_index=3),
    )
    neck = dict(neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=4)) if head == 'FPNHead' else {}
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mmconvnextv2', 'mmconvnextv2.pretrain']),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor',
                    mean=[120.0] * bands,
                    std=[60.0] * bands,
                    bgr_to_rgb=bands == 3,
                    pad_val=0,
                    seg_pad_val=255,
                    test_cfg=dict(size_divisor=32),
                ),
                backbone=dict(type='ConvNeXtV2', arch=NARROW, in_channels=bands, **backbone),
                **neck,
                decode_head=dict(
                    type=head,
                    channels=8,
                    num_classes=len(CLASSES),
                    norm_cfg=dict(type='BN'),
                    align_corners=False,
                    **heads[head],
                ),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dict(pipeline=[load, dict(type='PackSegInputs')])),
        )
    )


def write_model(folder, cfg, name='model', seed=0):
    """Write a config and a checkpoint with every parameter and statistic random, and return their paths."""
    import_scope(cfg)
    from mmengine.utils import import_modules_from_strings

    import_modules_from_strings(**cfg.custom_imports)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            if key.endswith('running_var'):
                value.uniform_(0.5, 1.5)
            elif value.ndim > 1:
                value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
            else:
                value.normal_(0.5 if 'weight' in key or 'gamma' in key else 0, 0.5)
    cfg.dump(str(folder / f'{name}.py'))
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / f'{name}.pth')
    return str(folder / f'{name}.py'), str(folder / f'{name}.pth')
