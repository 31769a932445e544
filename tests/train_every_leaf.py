"""Every detection and segmentation recipe, made small, trains and is evaluated: ``nox -s leaves``.

pytest collects this file only if it is named, since it takes a quarter of an hour. A new folder is swept by itself; a
new type of data set needs a line in :mod:`narrow`. Panoptic recipes are skipped without panopticapi.
"""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from narrow import narrow, write_panoptic

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded
from mmconvnextv2.utils.config import load_config

CONFIGS = Path(__file__).parents[1] / 'configs'
OTHERS = {'_base_', 'ablations', 'classification', 'custom', 'fcmae', 'quickstart', 'small'}
OTHER_SETS = ('cityscapes', 'lvis', 'voc', 'pascal', 'coco-stuff')  # trained by test_recipes/test_data_sets.py
LEAVES = sorted(
    path
    for path in CONFIGS.glob('*/*.py')
    if path.parent.name not in OTHERS and not any(name in path.stem for name in OTHER_SETS)
)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """Six images of 96 pixels with boxes, masks, labels and panoptic segments."""
    folder = tmp_path_factory.mktemp('embedded') / 'data'
    make_embedded(str(folder), EmbeddedSpec(unlabelled=1, train=4, val=2, size=96))
    write_panoptic(folder)
    return folder


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: f'{leaf.parent.name}/{leaf.stem}')
def test_leaf_trains_and_is_evaluated(leaf, data, tmp_path):
    """Two iterations with the recipe's own optimizer, augmentation, hooks and precision: every loss is finite, and the
    metric by which the recipe keeps its best checkpoint is evaluated."""
    if 'panoptic' in leaf.stem and find_spec('panopticapi') is None:
        pytest.skip('needs panopticapi, which is on GitHub only')
    cfg = narrow(load_config(str(leaf)), data)
    best = cfg.default_hooks.checkpoint.get('save_best')
    cfg.visualizer.name = str(tmp_path)  # mmengine keeps visualizers by name
    cfg.dump(str(tmp_path / 'leaf.py'))
    run_tool(train, parse_train_args([str(tmp_path / 'leaf.py'), '--work-dir', str(tmp_path / 'run'), '--seed=0']))
    lines = next((tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    losses = {key: value for line in logged for key, value in line.items() if 'loss' in key}
    assert len(losses) > 1 and all(math.isfinite(value) for value in losses.values()), losses
    metrics = {key: value for line in logged if 'loss' not in line for key, value in line.items()}
    if best is None:
        assert len(metrics) > 1, metrics
    else:
        assert math.isfinite(metrics[best]) and list((tmp_path / 'run').glob('best_*.pth'))
