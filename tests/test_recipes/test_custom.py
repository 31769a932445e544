"""The worked examples for own data train and evaluate on data laid out as their README says."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import NARROW

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

CUSTOM = Path(__file__).parents[2] / 'configs' / 'custom'
WIDTHS = list(NARROW['channels'])


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    """Own data of both layouts: a json with the categories 3 and 7, images, label PNGs and five-band arrays."""
    root = tmp_path_factory.mktemp('own')
    make_embedded(str(root / 'made'), EmbeddedSpec(unlabelled=1, train=4, val=2, size=64))
    for split in ('train', 'val'):
        made = root / 'made' / 'coco'
        shutil.copytree(made / f'{split}2017', root / split)
        content = json.loads((made / 'annotations' / f'instances_{split}2017.json').read_text())
        content['categories'] = [dict(id=3, name='round'), dict(id=7, name='edged'), dict(id=8, name='unused')]
        for one in content['annotations']:
            one['category_id'] = 3 if one['category_id'] % 2 else 7
        (root / f'{split}.json').write_text(json.dumps(content))
    for made_split, split in (('training', 'train'), ('validation', 'val')):
        for kind in ('images', 'labels'):
            (root / kind / split).mkdir(parents=True)
        for path in (root / 'made' / 'ade' / 'images' / made_split).glob('*.png'):
            image = Image.open(path).convert('RGB')
            image.save(root / 'images' / split / f'{path.stem}.jpg')
            bands = np.concatenate([np.asarray(image), np.asarray(image)[..., :2]], axis=2)
            np.save(root / 'images' / split / f'{path.stem}.npy', bands)
        for path in (root / 'made' / 'ade' / 'annotations' / made_split).glob('*.png'):
            labels = np.asarray(Image.open(path)) % 4  # 0 to 2 are classes
            labels = np.where(labels == 3, 255, labels).astype(np.uint8)
            Image.fromarray(labels).save(root / 'labels' / split / path.name)
    return root


def write_copy(folder, name, own, classes):
    """Copy an example as a user does and change its classes and its folder, for Mask R-CNN and UperNet alike."""
    for path in CUSTOM.glob('*.py'):
        text = path.read_text().replace("_base_ = '../", f"_base_ = '{CUSTOM.parent}/")
        lines = [
            f'classes = {classes!r}'
            if line.startswith('classes = ')
            else f"data_root = '{own}/'"
            if line.startswith('data_root = ')
            else line
            for line in text.splitlines()
        ]
        (folder / path.name).write_text('\n'.join(lines) + '\n')
    small = folder / 'small.py'
    small.write_text(f"_base_ = './{name}'\nmodel = dict(backbone=dict(arch=dict(_delete_=True, **{NARROW!r})))\n")
    return small


def run(config, work_dir, *options):
    run_tool(
        train,
        parse_train_args(
            [
                str(config),
                '--work-dir',
                str(work_dir),
                '--cfg-options',
                'model.backbone.init_cfg=None',
                f'visualizer.name={config}',
                f'experiment_name={work_dir.parent.name}',
                'optim_wrapper.type=OptimWrapper',
                *(
                    f'{split}_dataloader.{option}'
                    for split in ('train', 'val', 'test')
                    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
                ),
                *options,
            ]
        ),
    )
    lines = max(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mask-rcnn_own-classes.py', 'mask-rcnn_grey.py'])
def test_detection(own, tmp_path, name):
    """Two of a json's three categories, with gaps in their ids: a step trains, and AP is evaluated over both."""
    config = write_copy(tmp_path, name, own, ('round', 'edged'))
    with config.open('a') as file:
        file.write(
            f'model.update(neck=dict(in_channels={WIDTHS}, out_channels=16),\n'
            '    rpn_head=dict(in_channels=16, feat_channels=16), roi_head=dict(\n'
            '        bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16),\n'
            '        bbox_head=dict(in_channels=16, fc_out_channels=16),\n'
            '        mask_head=dict(in_channels=16, conv_out_channels=16)))\n'
        )
    small = [
        f'{split}_dataloader.dataset.pipeline.{place}.scale=(64, 64)'
        for split, place in (('train', 2), ('val', 1), ('test', 1))
    ]
    logged = run(
        config,
        tmp_path / 'run',
        *small,
        'train_dataloader.dataset.pipeline.3.crop_size=(64, 64)',
        'train_cfg.max_iters=1',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
    )
    assert math.isfinite(logged['loss']) and 'coco/bbox_mAP' in logged and 'coco/segm_mAP' in logged


@pytest.mark.slow
@pytest.mark.parametrize('name', ['upernet_own-classes.py', 'upernet_five-channels.py'])
def test_segmentation(own, tmp_path, name):
    """Three classes and 255 as ignored, from JPEGs and from arrays of five bands: a step trains, mIoU is evaluated."""
    config = write_copy(tmp_path, name, own, ('a', 'b', 'c'))
    with config.open('a') as file:
        file.write(
            f'model.update(decode_head=dict(in_channels={WIDTHS}, channels=8),\n'
            '    auxiliary_head=dict(in_channels=8, channels=8), data_preprocessor=dict(size=(64, 64)))\n'
        )
    logged = run(
        config,
        tmp_path / 'run',
        'train_dataloader.dataset.pipeline.3.crop_size=(64, 64)',
        'train_dataloader.dataset.pipeline.2.scale=(128, 64)',
        'train_cfg.max_iters=1',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
        'model.test_cfg.mode=whole',
        *(f'{split}_dataloader.dataset.pipeline.1.scale=(128, 64)' for split in ('val', 'test')),
    )
    assert math.isfinite(logged['loss']) and 0 <= logged['mIoU'] <= 100


@pytest.mark.parametrize('name, count', [('mask-rcnn_own-classes.py', 2), ('upernet_own-classes.py', 3)])
def test_wrong_classes_are_named(own, tmp_path, name, count):
    """A class that the json lacks, or a head with another count, ends as one line before training."""
    classes = ('round', 'edge') if count == 2 else ('a', 'b', 'c')
    config = write_copy(tmp_path, name, own, classes)
    options = [] if count == 2 else ['model.decode_head.num_classes=7']
    with pytest.raises(SystemExit, match=r"error: .*('edge'|num_classes=\[3, 7\])"):
        run(config, tmp_path / 'run', *options)
