"""Recipes of data sets and detectors, on miniature data in each set's own layout.

One leaf per family is trained here. ``MMCONVNEXTV2_EVERY_LEAF=1`` trains all of them, which takes minutes.
"""

import json
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import miniature_data as mini
import numpy as np
import pytest
import torch
from leaf_configs import read_leaf
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, EVALUATOR, DefaultScope
from mmengine.structures import InstanceData, PixelData
from small_models import NARROW

from mmconvnextv2.commands.data_checks import check_data
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets.lvis import CheckedLVISDataset
from mmconvnextv2.utils.config import import_scope, inner_datasets

CONFIGS = Path(__file__).parents[2] / 'configs'
WIDTHS = list(NARROW['channels'])
FAMILIES = (
    'faster_rcnn/faster-rcnn_convnextv2-b_fpn_voc0712',
    'retinanet/retinanet_convnextv2-t_fpn_1x_coco',
    'atss/atss_convnextv2-t_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_convnextv2-b_fpn_seesaw-sample1e-3-ms-2x_lvis-v1',
    'upernet/upernet_convnextv2-b_90k_cityscapes-512x1024',
    'semantic_fpn/semantic-fpn_convnextv2-t_160k_ade20k-512x512',
)
DATA_SETS = {
    'coco': 'mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco',
    'coco-boxes': 'faster_rcnn/faster-rcnn_convnextv2-t_fpn_1x_coco',
    'cityscapes-instances': 'mask_rcnn/mask-rcnn_convnextv2-b_fpn_cityscapes',
    'lvis': 'mask_rcnn/mask-rcnn_convnextv2-b_fpn_sample1e-3-ms-1x_lvis-v1',
    'voc0712': 'faster_rcnn/faster-rcnn_convnextv2-b_fpn_voc0712',
    'ade20k': 'semantic_fpn/semantic-fpn_convnextv2-b_160k_ade20k-512x512',
    'cityscapes': 'upernet/upernet_convnextv2-b_90k_cityscapes-512x1024',
    'pascal-context': 'upernet/upernet_convnextv2-b_80k_pascal-context-480x480',
    'pascal-context-59': 'upernet/upernet_convnextv2-b_80k_pascal-context-59-480x480',
    'voc12aug': 'upernet/upernet_convnextv2-b_40k_voc12aug-512x512',
    'coco-stuff': 'upernet/upernet_convnextv2-b_160k_coco-stuff164k-512x512',
}
PATTERNS = (
    'faster_rcnn/*',
    'retinanet/*',
    'atss/*',
    'semantic_fpn/*',
    'mask_rcnn/*1x*',
    'mask_rcnn/*supervised*',
    'upernet/*supervised*',
    'cascade_mask_rcnn/*fcmae*',
)
MATCHING = [path for pattern in PATTERNS for path in CONFIGS.glob(f'{pattern}.py')]
EVERY = sorted({f'{path.parent.name}/{path.stem}' for path in MATCHING} | {*FAMILIES, *DATA_SETS.values()})
PACKAGES = dict(LVISMetric='lvis', CityScapesMetric='cityscapesscripts')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with all miniature data sets in ``data/``; maps each to what its validation images show."""
    root = tmp_path_factory.mktemp('home')
    cityscapes = read(DATA_SETS['cityscapes-instances']).classes
    drawn = {
        'coco': mini.write_coco(root, CocoDataset.METAINFO['classes']),
        'lvis': mini.write_lvis(root, CheckedLVISDataset.METAINFO['classes']),
        'voc0712': mini.write_voc_boxes(root, VOCDataset.METAINFO['classes']),
        'cityscapes': mini.write_cityscapes(root, cityscapes),
        'voc12aug': mini.write_voc_labels(root),
        'pascal-context': mini.write_context(root),
        'ade20k': mini.write_ade20k(root),
        'coco-stuff': mini.write_coco_stuff(root),
    }
    drawn.update({'coco-boxes': drawn['coco'], 'cityscapes-instances': drawn['cityscapes']})
    drawn['pascal-context-59'] = drawn['pascal-context']
    return root, {name: list(images.values()) for name, images in drawn.items()}


@pytest.fixture
def home(data, monkeypatch):
    """The working folder in which the recipes' paths, such as ``data/cityscapes``, exist."""
    monkeypatch.chdir(data[0])
    return data[0]


def read(leaf):
    cfg = read_leaf(CONFIGS / f'{leaf}.py')
    import_scope(cfg)
    return cfg


def shrink(node, factor=8):
    """Divide the sizes of a pipeline's steps, in place."""
    if isinstance(node, (list, tuple)):
        for child in node:
            shrink(child, factor)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ('scale', 'scales', 'crop_size', 'size', 'stride'):
                node[key] = divided(value, factor)
            else:
                shrink(value, factor)


def divided(size, factor):
    return type(size)(divided(one, factor) for one in size) if isinstance(size, (list, tuple)) else size // factor


def narrow_detector(model):
    model.neck.update(in_channels=WIDTHS, out_channels=32)
    if 'rpn_head' not in model:
        model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
        model.test_cfg.update(score_thr=0.0, max_per_img=20)
        return
    model.rpn_head.update(in_channels=32, feat_channels=32)
    model.train_cfg.rpn.allowed_border = -1  # Cascade's 0 leaves no anchor in images this small
    model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 20
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    heads = model.roi_head
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        heads.get(part, {}).update(out_channels=32)
    boxes = heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]
    for one in boxes:
        one.update(in_channels=32, fc_out_channels=32, conv_out_channels=32)
    heads.get('mask_head', {}).update(in_channels=32, conv_out_channels=32)


def narrow(leaf, folder):
    """Write a leaf with a narrow model, small images, one pass over the data and no processes of its own."""
    cfg = read(leaf)
    model = cfg.model
    model.backbone.update(arch=NARROW, init_cfg=None, drop_path_rate=0.0)  # a dropped block has no gradient
    if cfg.default_scope == 'mmdet':
        narrow_detector(model)
    elif 'neck' in model:
        model.neck.update(in_channels=WIDTHS, out_channels=16)
        model.decode_head.update(in_channels=[16] * 4, channels=8)
    else:
        model.decode_head.update(in_channels=WIDTHS, channels=8)
        model.auxiliary_head.update(in_channels=WIDTHS[2], channels=8)
    shrink(model.data_preprocessor)
    if 'crop_size' in model.test_cfg:
        shrink(model.test_cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        for dataset in inner_datasets(loader.dataset):
            shrink(dataset.pipeline)
        if 'times' in loader.dataset:
            loader.dataset.times = 1
    cfg.test_dataloader = cfg.val_dataloader
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.update(dict(max_epochs=1, val_interval=1) if by_epoch else dict(max_iters=2, val_interval=2))
    cfg.default_hooks.logger.interval = 1
    lacking = lacking_packages(cfg)
    if lacking and isinstance(cfg.val_evaluator, list):
        cfg.val_evaluator = [one for one in cfg.val_evaluator if one.type not in lacking]
    elif lacking:
        cfg.val_evaluator = cfg.val_dataloader = cfg.val_cfg = None
    path = folder / f'{Path(leaf).name}.py'
    text = {key: value for key, value in cfg.items() if key not in ('sizes', 'size')}
    Config(text).dump(path)
    return path


def lacking_packages(cfg):
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    return [one.type for one in evaluators if one.type in PACKAGES and not find_spec(PACKAGES[one.type])]


@pytest.mark.slow
@pytest.mark.parametrize('leaf', EVERY if os.environ.get('MMCONVNEXTV2_EVERY_LEAF') else FAMILIES)
def test_leaf_trains_and_is_evaluated(home, tmp_path, leaf):
    """A narrow copy trains a pass through the entry point of ``tools/train.py``: every loss is finite, the gradient has
    reached every matrix of the backbone, and the recipe's own metric is in its range, and is that of ``save_best``."""
    cfg = read(leaf)
    config, work_dir = narrow(leaf, tmp_path), tmp_path / 'run'
    run_tool(
        train,
        parse_train_args(
            [str(config), '--work-dir', str(work_dir), '--seed=0', '--cfg-options', f'visualizer.name={tmp_path}']
        ),
    )
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    logged = {key: value for line in lines for key, value in json.loads(line).items()}
    losses = {key: value for key, value in logged.items() if 'loss' in key}
    assert len(losses) >= 2 and all(math.isfinite(value) for value in losses.values())
    checkpoint = torch.load(max(work_dir.glob('[ei][pt]*_*.pth')), weights_only=False)
    weights = {name: value for name, value in checkpoint['state_dict'].items() if name.startswith('backbone.')}
    shapes = {value.shape for value in weights.values() if value.ndim > 1}  # which no head has
    reached = [
        one['exp_avg'].any() for one in checkpoint['optimizer']['state'].values() if one['exp_avg'].shape in shapes
    ]
    assert len(reached) >= 19 and all(reached)
    metric = cfg.default_hooks.checkpoint.save_best
    if metric.split('/')[0] == 'lvis' and not find_spec('lvis'):
        return
    assert 0 <= logged[metric] <= (100 if metric == 'mIoU' else 1)
    assert list(work_dir.glob('best_*.pth'))


def truth_as_prediction(sample):
    """Return a sample of mmdet or mmseg that predicts its own ground truth, as metrics take it."""
    if hasattr(sample, 'gt_sem_seg'):
        sample.pred_sem_seg = PixelData(data=sample.gt_sem_seg.data.clone())
        return sample.to_dict()
    truth = sample.gt_instances
    found = InstanceData(bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth.labels)))
    if 'masks' in truth:
        found.masks = torch.tensor(truth.masks.masks).bool()
    sample.pred_instances = found
    return sample.to_dict()


@pytest.mark.parametrize('name', DATA_SETS)
def test_truth_scores_full_marks(home, data, name):
    """The ground truth as prediction gets full marks from the leaf's own metric: data set, metric and annotation file
    agree on the numbers of classes. What the data set reads is what was drawn."""
    cfg = read(DATA_SETS[name])
    check_data(cfg, ('train',))
    lacking = set(lacking_packages(cfg))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        pipeline = [step for step in cfg.val_dataloader.dataset.pipeline if step.type != 'Resize']
        if cfg.default_scope == 'mmdet':
            pipeline[-1]['meta_keys'] = ('img_id', 'img_path', 'ori_shape', 'img_shape')
        dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'pipeline': pipeline})
        evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
        evaluators = [one for one in evaluators if one.type not in lacking]
        evaluator = EVALUATOR.build(dict(type='Evaluator', metrics=evaluators)) if evaluators else None
        samples = [dataset[number]['data_samples'] for number in range(len(dataset))]
        compare_with_drawn(cfg, name, samples, data[1][name])
        if evaluator is None:
            return
        evaluator.dataset_meta = dataset.metainfo
        for sample in samples:
            evaluator.process([truth_as_prediction(sample)], {})
        metrics = evaluator.evaluate(len(samples))
    best = cfg.default_hooks.checkpoint.save_best
    assert metrics[best] == pytest.approx(100 if best == 'mIoU' else 1)


def compare_with_drawn(cfg, name, samples, drawn):
    """Compare boxes and classes, or label maps, with what was drawn."""
    assert len(samples) == len(drawn) == 2
    for sample, one in zip(samples, drawn):
        if cfg.default_scope == 'mmdet':
            np.testing.assert_allclose(sample.gt_instances.bboxes.tensor.numpy(), one.boxes)
            assert sample.gt_instances.labels.tolist() == list(one.classes)
            continue
        first = dict(cityscapes=11).get(name, 1 if name in ('voc12aug', 'pascal-context') else 0)
        labels = sample.gt_sem_seg.data[0].numpy()
        for number, index in enumerate(one.classes):
            assert (labels[one.mask(number)] == first + index).all()
        assert (labels[0] == 255).all()


@pytest.mark.parametrize('leaf, package', [(DATA_SETS['lvis'], 'lvis'), (DATA_SETS['cityscapes-instances'], 'citys')])
def test_missing_package_is_said_before_training(home, monkeypatch, leaf, package):
    """A metric whose package is missing, or too old for NumPy, ends in one line before training, which names the way to
    install it and the way without it."""
    cfg = read(leaf)
    name = next(one for one in PACKAGES.values() if one.startswith(package))
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f'{package}.*not installed: `pip install .*val_cfg=None'):
        check_data(cfg, ('val',))


def test_old_lvis_is_refused(home, monkeypatch, tmp_path):
    """The release of ``lvis`` that reads ``np.float`` is refused before training, not after the first epoch."""
    package = tmp_path / 'lvis'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'eval.py').write_text('total = np.cumsum(found, axis=1).astype(dtype=np.float)')
    monkeypatch.delitem(sys.modules, 'lvis', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r'stops at np\.float.*lvis-dataset/lvis-api'):
        check_data(read(DATA_SETS['lvis']), ('val',))
