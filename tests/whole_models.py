"""Narrow trained-like models of every kind that is exported whole, and images for them."""

import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope
from narrow import dicts_of, narrow_model

from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.utils.config import load_config

CLASSES = ('tree', 'sea', 'house', 'cloud')
LARGE = 500
WIDTHS = ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels')
SCALE = (160, 128)  # images of this size are not resized
LEAVES = dict(
    mask='mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py',
    faster='faster_rcnn/faster-rcnn_convnextv2-t_fpn_1x_coco.py',
    cascade='cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-t_fpn_ms-crop-3x_coco.py',
    retinanet='retinanet/retinanet_convnextv2-t_fpn_1x_coco.py',
    atss='atss/atss_convnextv2-t_fpn_1x_coco.py',
    rtmdet='rtmdet/rtmdet-l_convnextv2-t_100e_coco.py',
    dino='dino/dino_convnextv2-t_4scale-12e_coco.py',
    upernet='upernet/upernet_convnextv2-a_160k_ade20k-512x512.py',
    semantic_fpn='semantic_fpn/semantic-fpn_convnextv2-t_160k_ade20k-512x512.py',
)


def randomise(model, seed=0):
    """Draw parameters and running statistics so that activations keep their size, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not value.is_floating_point() or name.startswith('data_preprocessor'):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.data = drawn * (1.4 / value[0].numel() ** 0.5)
        elif 'running_var' in name:
            value.data = drawn.abs() * 0.3 + 0.5
        else:
            value.data = drawn * 0.2 + name.endswith('weight')


def write_model(kind, folder, leaf=None):
    """Write a config and a checkpoint of a narrow model as training would; return their paths and the config."""
    config, checkpoint = folder / f'{kind}.py', folder / f'{kind}.pth'
    config.write_text(f"_base_ = 'mmconvnextv2::{leaf or LEAVES[kind]}'\n")
    cfg = load_config(str(config))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        narrow_model(cfg.model, len(CLASSES))
        if kind != 'dino':
            for part in dicts_of(cfg.model):
                for name in set(WIDTHS) & set(part):
                    part[name] = 32 if part[name] == 256 else part[name]
        for part in dicts_of(cfg.model.get('test_cfg', {})):
            if 'score_thr' in part:
                part.update(score_thr=0.05)
        for part in dicts_of(cfg.test_dataloader):
            if part.get('type') == 'Resize':
                part['scale'] = SCALE
            if part.get('type') == 'Pad':
                part['size'] = SCALE
        cfg.dump(config)
        cfg = load_config(str(config))
        model = MODELS.build(cfg.model)
    randomise(model)
    for module in model.backbone.modules():  # hidden features of about 1e3, whose squares float16 cannot sum
        if isinstance(module, ConvNeXtV2Block):
            module.pointwise_conv1.weight.data *= LARGE
            module.pointwise_conv1.bias.data *= LARGE
            module.grn.beta.data *= LARGE
            module.pointwise_conv2.weight.data /= LARGE
    if hasattr(model, 'bbox_head') and hasattr(model.bbox_head, 'retina_cls'):
        model.bbox_head.retina_cls.weight.data *= 0.1  # scores of exactly 1 would be ties
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    return str(config), str(checkpoint), load_config(str(config))


def draw_photos(count, height, width, seed=0):
    """Return images (N, H, W, 3), uint8 RGB: soft blobs with some noise."""
    import cv2

    generator = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        blobs = cv2.resize(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8), (width, height))
        noise = generator.integers(-20, 21, blobs.shape)
        photos.append(np.clip(blobs + noise, 0, 255).astype(np.uint8))
    return np.stack(photos)


def to_input(photos):
    """Return what a file reads, float32 (N, 3, H, W)."""
    return np.ascontiguousarray(photos.transpose(0, 3, 1, 2)).astype(np.float32)
