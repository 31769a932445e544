"""Samples of named arrays reach the model with their values, moved alike, and the shipped recipe trains on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fcmae_runs import train
from miniature_data import write_places
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from small_models import NARROW

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import from_canonical, to_canonical
from mmconvnextv2.pretrain import LoadNamedArrays, NamedArrays, SplitNamedArrays
from mmconvnextv2.pretrain.named_arrays import class_indices, measure_statistics
from mmconvnextv2.pretrain.targets import PixelClasses

CONFIG = 'configs/fcmae/fcmae_convnextv2-a_mp-mae_64xb64-200e_mmearth.py'
INPUTS = dict(optical=5)
TARGETS = dict(
    optical=dict(type='PixelValues', channels=5, source='inputs', norm_cell=True),
    elevation=dict(type='PixelValues', channels=1),
    cover=dict(type='PixelClasses', labels=[10, 20, 30], ignore_index=0),
    biome=dict(type='ImageClasses', num_classes=4),
    climate=dict(type='ImageValues', channels=3, optional=True),
)
META = ('img_path', 'visible_cells', 'cell_size', 'level')
ENDS = [dict(type='SplitNamedArrays'), dict(type='PackNamedArrays', meta_keys=META)]


@pytest.fixture
def places(tmp_path):
    return write_places(tmp_path / 'places')


def make(tmp_path, middle=(), **kwargs):
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadNamedArrays'), *middle, *ENDS]
    arguments = dict(inputs=INPUTS, targets=TARGETS, meta=('level',), pipeline=pipeline) | kwargs
    return NamedArrays(str(tmp_path / 'places'), **arguments)


def test_arrays_are_read_with_their_values(places, tmp_path):
    """Files and folders alike give every array: values as they are, labels as indices, NaN and -1 where missing."""
    dataset = make(tmp_path)
    assert len(dataset) == len(places)
    for number, (name, arrays) in enumerate(places.items()):
        sample = dataset[number]
        assert Path(sample['data_samples'].img_path).stem == name
        assert sample['data_samples'].level == str(arrays['level'])
        assert np.array_equal(sample['inputs'].numpy(), arrays['optical'].transpose(2, 0, 1))
        targets = {key: value.numpy() for key, value in sample['targets'].items()}
        assert np.array_equal(targets['elevation'][0], arrays['elevation'], equal_nan=True)
        assert np.array_equal(targets['cover'], arrays['cover'].astype(int) // 10 - 1)
        assert targets['biome'].tolist() == [int(arrays['biome'])]
        climate = arrays.get('climate', np.full(3, np.nan, np.float32))
        assert np.array_equal(targets['climate'], climate, equal_nan=True)
    batch = default_collate([dataset[number] for number in range(3)])
    assert batch['targets']['cover'].shape == (3, 40, 40) and batch['targets']['climate'].shape == (3, 3)


def test_labels_in_any_order():
    """The index of a label is its place in ``labels``, whatever their order; NaN and ignore_index are missing."""
    target = PixelClasses(labels=[30, 10, 20], ignore_index=255)
    found = class_indices(np.array([10, 20, 30, 255, np.nan], np.float32), target, 'labels')
    assert found.tolist() == [1, 2, 0, -1, -1]


def test_maps_move_alike(tmp_path):
    """Crops, flips and a nearest resize move inputs, targets and regions by the same pixels."""
    (tmp_path / 'places').mkdir()
    rows, columns = np.mgrid[:40, :40]
    np.savez(
        tmp_path / 'places/a.npz',
        optical=np.stack([rows, columns], 2).astype(np.float32),
        elevation=(100 * rows + columns).astype(np.float64),
        cover=((rows + columns) % 3 * 10 + 10).astype(np.uint8),
        regions=((rows // 8 + columns // 8) % 3).astype(np.uint8),
    )
    targets = {name: TARGETS[name] for name in ('elevation', 'cover')}
    middle = [
        dict(type='RandomResizedCrop', scale=32, interpolation='nearest', crop_ratio_range=(0.4, 0.9)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomFlip', prob=0.5, direction='vertical'),
    ]
    dataset = make(tmp_path, middle, inputs=dict(optical=2), targets=targets, meta=(), regions='regions')
    first = dataset[0]['inputs'].numpy()
    for _ in range(5):
        results = dataset.get_data_info(0)
        for transform in dataset.pipeline.transforms[:-1]:
            results = transform(results)
        rows, columns = results['img'][..., 0], results['img'][..., 1]
        assert results['img'].shape == (32, 32, 2)
        assert np.array_equal(results['targets']['elevation'][..., 0], 100 * rows + columns)
        assert np.array_equal(results['targets']['cover'], (rows + columns) % 3)
        assert np.array_equal(results['gt_seg_map'], (rows // 8 + columns // 8) % 3)
    assert np.array_equal(first, dataset[0]['inputs'].numpy())  # the key of a sample is its seed


def test_statistics_leave_missing_values_out(places, tmp_path):
    """Mean and deviation of inputs and targets are those of all values that are there, by kind if there are kinds."""
    measured = measure_statistics(make(tmp_path, targets={**TARGETS, 'elevation': dict(type='PixelValues')}))
    assert sorted(measured) == ['climate', 'elevation', 'optical']
    for name, found in measured.items():
        stacked = np.concatenate(
            [one[name].astype(np.float64).reshape(-1, len(found['mean'])) for one in places.values() if name in one]
        )
        there = ~np.isnan(stacked).all(0)
        np.testing.assert_allclose(np.array(found['mean'])[there], np.nanmean(stacked[:, there], 0), rtol=1e-9)
        np.testing.assert_allclose(np.array(found['std'])[there], np.nanstd(stacked[:, there], 0), rtol=1e-9)
    kinds = measure_statistics(make(tmp_path), kind='level')
    for kind, found in kinds.items():
        stacked = np.concatenate(
            [one['optical'].reshape(-1, 5) for one in places.values() if str(one['level']) == kind]
        )
        np.testing.assert_allclose(found['optical']['mean'], stacked.mean(0), rtol=1e-9)
    with pytest.raises(ValueError, match='kind=.cloud. is not in dataset.meta='):
        measure_statistics(make(tmp_path), kind='cloud')


def narrow_config(tmp_path, **options):
    """The shipped recipe on the miniature data set, with a narrow model."""
    cfg = Config.fromfile(CONFIG, format_python_code=False)
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'work'),
            'train_cfg.max_epochs': 2,
            'model.backbone.in_channels': 5,
            'model.neck.channels': 12,
            'model.head.pool': 'visible',
            'train_dataloader.batch_size': 3,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'train_dataloader.dataset.data_root': str(tmp_path / 'places'),
            'train_dataloader.dataset.pipeline.1.crop_size': 32,
            'train_dataloader.dataset.pipeline.3.mask_ratio': (0.3, 0.6),
            'optim_wrapper.type': 'OptimWrapper',
            'optim_wrapper.optimizer.lr': 0.01,
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'param_scheduler.1.end': 2,
            'default_hooks.logger.interval': 1,
            'log_level': 'ERROR',
            **options,
        }
    )
    cfg.model.backbone.arch = NARROW
    cfg.model.data_preprocessor = dict(type='FCMAEDataPreprocessor', mean=[1000.0], std=[300.0])
    cfg.model.head.targets = cfg.train_dataloader.dataset.targets = TARGETS
    cfg.train_dataloader.dataset.inputs = INPUTS
    return cfg


def test_recipe_trains(places, tmp_path):
    """The shipped recipe trains through mmengine's Runner with a range of ratios, logs each loss and weight, writes a
    reconstruction, and learns the weights."""
    runner = train(narrow_config(tmp_path))
    scalars = runner.message_hub.log_scalars
    for name in TARGETS:
        losses = scalars[f'train/loss/{name}'].data[0]
        assert len(losses) == 4 and np.isfinite(losses).all(), name
        assert len(scalars[f'train/weight/{name}'].data[0]) == 4
    total = scalars['train/loss'].data[0]
    assert np.isfinite(total).all()
    assert runner.model.weighting.log_variances.abs().min() > 0
    assert len(list((tmp_path / 'work').rglob('reconstruction_*.png'))) == 1


def test_pretrained_encoder_goes_to_mmearth_and_back(places, tmp_path):
    """The encoder of a trained checkpoint becomes MMEarth's layout and back, bit for bit, and starts a backbone."""
    runner = train(narrow_config(tmp_path, **{'train_cfg.max_epochs': 1, 'param_scheduler': []}))
    weights = runner.model.backbone.state_dict()
    for layout in ('mmearth', 'mmearth-dense'):
        back = to_canonical(from_canonical(weights, layout))
        assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)
    checkpoint = str(next((tmp_path / 'work').glob('epoch_1.pth')))
    init_cfg = dict(type='ConvNeXtV2Pretrained', checkpoint=checkpoint)
    model = ConvNeXtV2(NARROW, 5, stem=dict(type='ConvStem', stride=2), init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def change(tmp_path, name, **arrays):
    """Rewrite arrays of a sample that is a folder; None removes one."""
    for key, array in arrays.items():
        path = tmp_path / f'places/{name}/{key}.npy'
        path.unlink()
        if array is not None:
            np.save(path, array)


def test_bad_samples_are_refused(places, tmp_path):
    """Other names, bands, classes, sizes and axes are refused with the sample's path and what to set."""
    with pytest.raises(ValueError, match=r"0000.npz has the arrays .*not 'elevations' \(did you mean 'elevation'\?\)"):
        make(tmp_path, targets=dict(elevations=TARGETS['elevation']))[0]
    with pytest.raises(ValueError, match="not 'climate'.*optional=True if only some samples have it"):
        make(tmp_path, targets=dict(climate=dict(type='ImageValues', channels=3)))[0]
    with pytest.raises(
        ValueError, match=r"'optical' of .*0000.npz has shape \(40, 40, 5\).* with 4 bands: set dataset.in"
    ):
        make(tmp_path, inputs=dict(optical=4))[0]
    with pytest.raises(ValueError, match="'cover' of .*: class 20 is outside the range: expected 0 to 10"):
        make(tmp_path, targets=dict(cover=dict(type='PixelClasses', num_classes=11)))[0]
    with pytest.raises(ValueError, match=r'class 30 is outside the range: expected one of labels=\[10, 20\]'):
        make(tmp_path, targets=dict(cover=dict(type='PixelClasses', labels=[10, 20], ignore_index=0)))[0]
    with pytest.raises(ValueError, match="'climate' of .* has 3 values: expected 4, channels of the target"):
        make(tmp_path, targets=dict(climate=dict(type='ImageValues', channels=4)))[1]
    change(tmp_path, '0001', elevation=np.zeros((20, 20)), optical=np.zeros((5, 40, 40)))
    with pytest.raises(ValueError, match='with 5 bands: .*, or dataset.channels_first=True'):
        make(tmp_path)[1]
    with pytest.raises(ValueError, match="'elevation' is 20x20 pixels, the first input 40x40: resample"):
        make(tmp_path, channels_first=True)[1]
    with pytest.raises(ValueError, match='dataset.inputs={}: expected dict.NAME=number of bands'):
        make(tmp_path, inputs={})
    with pytest.raises(FileNotFoundError, match='none does not exist: set train_dataloader.dataset.data_root'):
        NamedArrays(str(tmp_path / 'none'), INPUTS)


def test_damaged_samples_are_skipped(places, tmp_path):
    """A cut archive and an array of objects count as unreadable files: the next sample takes their place."""
    first = tmp_path / 'places/0000.npz'
    first.write_bytes(first.read_bytes()[:200])
    change(tmp_path, '0001', elevation=None)
    np.save(tmp_path / 'places/0001/elevation.npy', np.array([{}], dtype=object), allow_pickle=True)
    dataset = make(tmp_path, max_corrupt_share=0.5)
    assert dataset[0]['data_samples'].img_path.endswith('0002.npz')
    assert repr(SplitNamedArrays()) and repr(LoadNamedArrays())
