"""The worked examples of ``configs/custom`` and the quickstart test, predict and augment their tests alike."""

import json
import pickle
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmconvnextv2.commands.predict import parse_args, predict
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import parse_test_args
from mmconvnextv2.commands.test import test as run_test
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded
from mmconvnextv2.utils.config import import_scope, read_config

ROOT = Path(__file__).parents[2]
NARROW = """
arch = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 20), _delete_=True)
"""
SEGMENTOR = (
    NARROW
    + """
model = dict(backbone=dict(arch=arch, init_cfg=None, drop_path_rate=0.), test_cfg=dict(_delete_=True, mode='whole'),
             decode_head=dict(in_channels=[8, 12, 16, 20], channels=16, norm_cfg=dict(type='BN')),
             auxiliary_head=dict(in_channels=16, channels=16, norm_cfg=dict(type='BN')))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(64, 64), keep_ratio=True)]
"""
)
DETECTOR = (
    NARROW
    + """
model = dict(backbone=dict(arch=arch, init_cfg=None, drop_path_rate=0.), neck=dict(in_channels=[8, 12, 16, 20]),
             test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)))
"""
)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'data'
    make_embedded(str(root), EmbeddedSpec(unlabelled=1, train=2, val=3, size=64))
    return root


def own_segmentation(drawn, folder, bands):
    """Images of the rendered data as own files, JPEG or arrays of bands, with labels 0 to 2."""
    for made, split in (('training', 'train'), ('validation', 'val')):
        for part in ('images', 'labels'):
            (folder / part / split).mkdir(parents=True)
        for path in sorted((drawn / 'ade/images' / made).glob('*.png')):
            pixels = mmcv.imread(str(path))
            if bands:
                np.save(folder / 'images' / split / f'{path.stem}.npy', np.concatenate([pixels, pixels[..., :2]], 2))
            else:
                cv2.imwrite(str(folder / 'images' / split / f'{path.stem}.jpg'), pixels)
            labels = mmcv.imread(str(drawn / 'ade/annotations' / made / path.name), 'unchanged') % 3
            cv2.imwrite(str(folder / 'labels' / split / f'{path.stem}.png'), labels)


def own_detection(drawn, folder):
    """The rendered images and two of their classes as own files."""
    for split in ('train', 'val'):
        content = json.loads((drawn / f'coco/annotations/instances_{split}2017.json').read_text())
        content['categories'] = content['categories'][:2]
        ids = [one['id'] for one in content['categories']]
        for one, name in zip(content['categories'], ('bicycle', 'person')):  # in another order than the config's
            one['name'] = name
        for number, one in enumerate(content['annotations']):
            one['category_id'] = ids[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f'{split}.json').write_text(json.dumps(content))
        (folder / split).mkdir()
        for path in (drawn / f'coco/{split}2017').glob('*.png'):
            (folder / split / path.name).write_bytes(path.read_bytes())


def random_checkpoint(config, path):
    """Weights that no training gave, with which predictions differ from image to image."""
    cfg = read_config(str(config))
    import_scope(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            std = 0.2 if cfg.default_scope == 'mmseg' else 0.05  # of which several classes come
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    for layer in model.modules():
        if getattr(layer, 'bias', None) is not None:  # torch draws those from the process's own generator
            torch.nn.init.zeros_(layer.bias)
    if cfg.default_scope == 'mmseg':  # normalised by what it sees, or one class wins everywhere
        bands = next(layer.in_channels for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
        images = F.interpolate(torch.randn(4, bands, 6, 6, generator=generator), size=96, mode='bilinear')
        for norm in (layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)):
            norm.momentum = None
        with torch.no_grad():
            model.train()
            model.decode_head(model.extract_feat(images))
    classes = cfg.get('classes') or cfg.metainfo.classes
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(
                dataset_meta=dict(
                    classes=tuple(classes), palette=[[60 * number % 256] * 3 for number in range(len(classes))]
                )
            ),
        ),
        path,
    )
    return str(path)


def resized(config):
    """Overrides that keep images small, where the recipe resizes them."""
    steps = read_config(str(config)).test_dataloader.dataset.pipeline
    return [
        part
        for number, step in enumerate(steps)
        if step['type'] == 'Resize'
        for part in ('--cfg-options', f'test_dataloader.dataset.pipeline.{number}.scale=(96,96)')
    ]


def evaluate(config, checkpoint, folder, *arguments):
    """Return what ``tools/test.py`` evaluates, by image."""
    run_tool(
        run_test,
        parse_test_args(
            [str(config), checkpoint, '--work-dir', str(folder), '--out', f'{folder}.pkl', *arguments, *resized(config)]
        ),
    )
    return {Path(one['img_path']).stem: one for one in pickle.loads(Path(f'{folder}.pkl').read_bytes())}


def predict_all(config, checkpoint, images, out):
    run_tool(
        predict,
        parse_args(
            [
                str(config),
                checkpoint,
                str(images),
                '--out',
                str(out),
                '--device',
                'cpu',
                '--score-thr',
                '0',
                *resized(config),
            ]
        ),
    )
    return json.loads((out / 'predictions.json').read_text())['predictions']


@pytest.mark.slow
@pytest.mark.parametrize('example', ['upernet_own-classes', 'upernet_five-channels', 'quickstart'])
def test_segmentation(drawn, tmp_path, example):
    """``predict`` labels each pixel as ``test`` does, and ``--tta`` evaluates the same images."""
    base = 'quickstart/upernet' if example == 'quickstart' else f'custom/{example}'
    text = f"_base_ = '{ROOT}/configs/{base}.py'\n{SEGMENTOR}"
    if example == 'quickstart':
        images = drawn / 'ade/images/validation'
        for split in ('train', 'val', 'test'):
            text += f"{split}_dataloader = dict(num_workers=0, dataset=dict(data_root='{drawn}/ade'))\n"
    else:
        own_segmentation(drawn, tmp_path / 'own', bands=example.startswith('upernet_five'))
        images = tmp_path / 'own' / 'images' / 'val'
        for split in ('train', 'val', 'test'):
            text += f"{split}_dataloader = dict(num_workers=0, dataset=dict(data_root='{tmp_path}/own'))\n"
    config = tmp_path / 'mine.py'
    config.write_text(text)
    checkpoint = random_checkpoint(config, tmp_path / 'a.pth')
    tested = evaluate(config, checkpoint, tmp_path / 'tested')
    predicted = predict_all(config, checkpoint, images, tmp_path / 'predicted')
    assert len(predicted) == len(tested) == 3
    for one in predicted:
        labels = np.asarray(Image.open(tmp_path / 'predicted' / one['labels']))
        assert np.array_equal(labels, tested[Path(one['file']).stem]['pred_sem_seg']['data'][0].numpy())
        assert len(one['classes']) > 1
    augmented = evaluate(config, checkpoint, tmp_path / 'augmented', '--tta')
    assert augmented.keys() == tested.keys()


@pytest.mark.slow
@pytest.mark.parametrize('example', ['mask-rcnn_own-classes', 'mask-rcnn_grey'])
def test_detection(drawn, tmp_path, example):
    """``predict`` finds the boxes, scores and class names that ``test`` evaluates."""
    own_detection(drawn, tmp_path / 'own')
    config = tmp_path / 'mine.py'
    text = f"_base_ = '{ROOT}/configs/custom/{example}.py'\n{DETECTOR}"
    for split in ('train', 'val', 'test'):
        text += f"{split}_dataloader = dict(num_workers=0, dataset=dict(data_root='{tmp_path}/own/'))\n"
    text += ''.join(f"{split}_evaluator = dict(ann_file='{tmp_path}/own/val.json')\n" for split in ('val', 'test'))
    config.write_text(text)
    checkpoint = random_checkpoint(config, tmp_path / 'a.pth')
    tested = evaluate(config, checkpoint, tmp_path / 'tested')
    names = read_config(str(config)).classes
    for one in predict_all(config, checkpoint, tmp_path / 'own' / 'val', tmp_path / 'predicted'):
        found = tested[Path(one['file']).stem]['pred_instances']
        np.testing.assert_allclose([each['score'] for each in one['instances']], found['scores'].numpy(), rtol=1e-5)
        assert [each['class'] for each in one['instances']] == [names[label] for label in found['labels']]
        assert one['instances']
