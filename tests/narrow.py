"""Recipes made small: a narrow backbone, few layers and queries, small images, and the embedded data set.

Works on any recipe of MMDetection's and MMSegmentation's scope. A recipe on another data set needs a line in
:func:`use_embedded`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as coco_mask

from mmconvnextv2.datasets.synthetic.scenes import GROUNDS, OBJECTS

CHANNELS = [32, 64, 128, 192]  # half of them divide into the 32 groups of a GroupNorm
ARCH = dict(depths=(1, 1, 1, 1), channels=tuple(CHANNELS))
SIDES = ('scale', 'scales', 'size', 'crop_size', 'img_scale', 'max_size')
LAYERS = dict(encoder=1, decoder=2, transformer_decoder=3)
FEW = dict(num_queries=20, num_dn_queries=5, nms_pre=100, max_per_img=50, max_per_image=50, fc_out_channels=64)


def dicts_of(value):
    """Yield all dicts inside nested dicts, lists and tuples."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from dicts_of(each)


def shrink(side):
    """Return about a quarter of a side or of sides in pixels, in multiples of 32 so that every stage divides them.

    Anchors of 64 pixels, the smallest of some detectors, have to fit.
    """
    if isinstance(side, (list, tuple)):
        return type(side)(shrink(each) for each in side)
    return max(96, 32 * round(side / 128))


def narrow_model(model, num_classes=None):
    """Make ``cfg.model`` small in place: widths, layers of transformers, queries, padding, and classes if given."""
    model.backbone.update(arch=ARCH, init_cfg=None)
    if 'auxiliary_head' in model:
        model.auxiliary_head.in_channels = CHANNELS[model.auxiliary_head.in_index]
    for head in ('decode_head', 'auxiliary_head'):
        if 'channels' in model.get(head, {}):
            model[head].channels = CHANNELS[0]
    for part in dicts_of(model):
        if isinstance(part.get('in_channels'), (list, tuple)):
            part['in_channels'] = CHANNELS[-len(part['in_channels']) :]
        for name in set(LAYERS) & set(part):
            if 'num_layers' in part[name]:
                part[name]['num_layers'] = LAYERS[name]
        for name in set(FEW) & set(part):
            part[name] = FEW[name]
        if part.get('type') == 'RandomSampler':
            part['num'] = 16
        if 'num_points' in (part.get('train_cfg') or {}):
            part['train_cfg']['num_points'] = 64
        if num_classes is not None:
            set_num_classes(part, num_classes)
    if 'neck' in model and 'decode_head' in model:  # Semantic FPN: the head reads the neck's maps
        model.neck.out_channels = CHANNELS[0]
        model.decode_head.in_channels = [CHANNELS[0]] * len(CHANNELS)
    shrink_sides(model.data_preprocessor)
    return model


def make_batch(scope, with_mask, side=96):
    """Return two random images, (side, side + 32), with labels of COCO's or ADE20K's number of classes."""
    shape = (side, side + 32)
    if scope == 'mmdet':
        return demo_mm_inputs(
            batch_size=2, image_shapes=[(3, *shape)] * 2, num_items=[2, 3], num_classes=80, with_mask=with_mask
        )
    size = dict(img_shape=shape, ori_shape=shape)
    labels = [PixelData(data=torch.randint(0, 150, (1, *shape))) for _ in range(2)]
    samples = [SegDataSample(gt_sem_seg=each, metainfo=size) for each in labels]
    return dict(inputs=[torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for _ in range(2)], data_samples=samples)


def set_num_classes(part, num_classes):
    """Set the number of classes in one dict of a model; ``num_classes`` is a number, or one of things and of stuff."""
    things, stuff = num_classes if isinstance(num_classes, tuple) else (num_classes, 0)
    for name, value in dict(num_classes=things + stuff, num_things_classes=things, num_stuff_classes=stuff).items():
        if name in part:
            part[name] = value
    if part.get('class_weight'):
        part['class_weight'] = [1.0] * (things + stuff) + [0.1]


def shrink_sides(*parts):
    """Shrink everything that is a number of pixels by its name, in place."""
    for part in dicts_of(parts):
        for name in set(SIDES) & set(part):
            if part[name]:
                part[name] = shrink(part[name])
        if min(part.get('ratio_range') or [1]) < 0.5:  # large-scale jittering, from 0.1
            part['ratio_range'] = (0.5, max(part['ratio_range']))


def shrink_images(cfg):
    """Shrink all sides in pixels that pipelines and sliding windows use; keep detections of any score."""
    windows = [cfg.model.get('test_cfg', {})] if 'stride' in cfg.model.get('test_cfg', {}) else []
    shrink_sides(*(cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')), cfg.get('custom_hooks'), windows)
    for window in windows:
        window['stride'] = shrink(window['stride'])
    for part in dicts_of(cfg.model.get('test_cfg', {})):
        if 'score_thr' in part:
            part['score_thr'] = 0.0


def use_embedded(cfg, data):
    """Read the embedded data set in ``data``; return the number of classes, or of things and of stuff.

    Raises:
        KeyError: For a type of data set that has no counterpart there yet.
    """
    every, evaluators = (*GROUNDS, *OBJECTS), [cfg.val_evaluator, cfg.test_evaluator]
    for part in dicts_of(evaluators):
        for name, value in part.items():
            if isinstance(value, str):
                part[name] = value.replace('data/coco', f'{data}/coco')
    for split, folder in dict(train='training', val='validation', test='validation').items():
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        dataset, kind = loader.dataset, loader.dataset.type
        if kind in ('CocoDataset', 'CheckedCocoDataset'):
            dataset.update(data_root=f'{data}/coco/', metainfo=dict(classes=OBJECTS))
            num_classes = len(OBJECTS)
        elif kind == 'CocoPanopticDataset':
            names = dict(thing_classes=OBJECTS, stuff_classes=GROUNDS, classes=(*OBJECTS, *GROUNDS))
            dataset.update(data_root=f'{data}/coco/', metainfo=names)
            num_classes = len(OBJECTS), len(GROUNDS)
        elif kind == 'ADE20KDataset':
            loader.dataset = dict(
                type='BaseSegDataset',
                data_root=f'{data}/ade',
                metainfo=dict(classes=every),
                reduce_zero_label=True,
                img_suffix='.png',
                seg_map_suffix='.png',
                data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
                pipeline=dataset.pipeline,
            )
            num_classes = len(every)
        else:
            raise KeyError(f'{kind}: add it to tests/narrow.py')
    return num_classes


def narrow(cfg, data):
    """Make a whole recipe small in place: one evaluation after two iterations, or one epoch, on the embedded data."""
    num_classes = use_embedded(cfg, data)
    narrow_model(cfg.model, num_classes)
    for part in dicts_of([cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]):
        if 'num_classes' in part:
            part['num_classes'] = num_classes
    shrink_images(cfg)
    cfg.train_cfg.pop('dynamic_intervals', None)
    length = dict(max_epochs=1) if 'max_epochs' in cfg.train_cfg else dict(max_iters=2)
    cfg.train_cfg.update(length, val_interval=max(length.values()))
    cfg.default_hooks.checkpoint.update(interval=max(length.values()))
    cfg.default_hooks.logger.update(interval=1)
    return cfg


def write_panoptic(data):
    """Add panoptic labels to an embedded data set, as COCO has them: segments of objects, and of grounds.

    The colour of a pixel is the id of its segment, R + 256 G + 256 ** 2 B; 0 is unlabelled.
    """
    for split, folder in dict(train='training', val='validation').items():
        content = json.loads((data / 'coco' / 'annotations' / f'instances_{split}2017.json').read_text())
        target = data / 'coco' / 'annotations' / f'panoptic_{split}2017'
        target.mkdir()
        panoptic = []
        for image in content['images']:
            labels = np.array(Image.open(data / 'ade' / 'annotations' / folder / image['file_name']))
            masks = [(len(OBJECTS) + 1 + ground, labels == ground + 1) for ground in range(len(GROUNDS))]
            masks += [
                (one['category_id'], coco_mask.decode(one['segmentation']).astype(bool))
                for one in content['annotations']
                if one['image_id'] == image['id']
            ]
            panoptic.append(_write_segments(masks, target / Path(image['file_name']).with_suffix('.png'), image['id']))
        names = enumerate((*OBJECTS, *GROUNDS))
        categories = [dict(id=index + 1, name=name, isthing=int(name in OBJECTS)) for index, name in names]
        Path(f'{target}.json').write_text(
            json.dumps(dict(images=content['images'], annotations=panoptic, categories=categories))
        )


def _write_segments(masks, path, image_id):
    """Write the PNG of one image and return its annotation."""
    ids, segments = np.zeros(masks[0][1].shape, dtype=np.int64), []
    for number, (category, mask) in enumerate(masks, 1):
        if not mask.any():
            continue
        ids[mask] = number * 300  # in two of the three colours
        box = [int(side) for side in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))]
        segments.append(dict(id=number * 300, category_id=category, iscrowd=0, area=int(mask.sum()), bbox=box))
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)).save(path)
    return dict(image_id=image_id, file_name=path.name, segments_info=segments)
