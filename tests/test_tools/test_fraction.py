"""``tools/train.py --fraction`` trains on a share of the labels that grows by adding images, in a run of the same
length."""

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ClassBalancedDataset
from mmengine.registry import DATASETS

from mmconvnextv2.datasets.fraction import LabelFraction, fractions_in, nested_order


@DATASETS.register_module()
class Numbered(BaseDataset):
    """Images that are numbers, each with two classes for detectors and, with labels, one for classifiers."""

    def __init__(self, length, labels=False):
        self.length = length
        if labels:
            self.get_gt_labels = lambda: np.arange(length) % 10 // 9  # one in ten is of class 1
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(number=number) for number in range(self.length)]

    def get_cat_ids(self, idx):
        return [idx, idx + 1]


def taken(length, fraction, seed=0, **options):
    dataset = LabelFraction(dict(type='Numbered', length=length, **options), fraction, seed)
    assert len(dataset) == length  # an epoch stays as long
    numbers = [dataset[index]['number'] for index in range(len(dataset))]
    assert numbers == [dataset.get_data_info(index)['number'] for index in range(length)]
    return numbers


def test_fractions_are_nested_and_of_their_size():
    """Smaller fractions are part of larger ones, the whole is everything, seeds differ, and each chosen image occurs
    equally often but for one."""
    for seed in range(3):
        sets = [set(taken(97, fraction, seed)) for fraction in (0.001, 0.05, 0.1, 0.5, 1.0)]
        assert [len(one) for one in sets] == [1, 5, 10, 48, 97]
        assert all(small < large for small, large in zip(sets, sets[1:]))
    assert set(taken(97, 0.1, 0)) != set(taken(97, 0.1, 1))
    counts = np.unique(taken(97, 0.1), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_classes_keep_their_shares():
    """Where each image has one class, every fraction has the share of the whole, to one image; without classes a
    random choice does not."""
    labels = np.arange(200) % 10 // 9
    for seed in range(5):
        order = nested_order(200, seed, labels)
        assert sorted(order) == list(range(200))
        for count in range(1, 201):
            assert abs(labels[order[:count]].sum() - count / 10) <= 1
    assert sum(number % 10 == 9 for number in set(taken(200, 0.1, labels=True))) == 2
    assert any(abs(labels[nested_order(200, seed)[:50]].sum() - 5) > 1 for seed in range(5))


def test_wrappers_find_it():
    """It works below mmengine's wrappers, which ask for classes per image, and is found there."""
    dataset = ClassBalancedDataset(
        dict(type='LabelFraction', dataset=dict(type='Numbered', length=20), fraction=0.25), oversample_thr=1e-3
    )
    assert len({dataset[index]['number'] for index in range(len(dataset))}) == 5
    (found,) = fractions_in(dataset)
    assert str(found) == '5 of 20 images (fraction 0.25, seed 0)'
    assert found.get_cat_ids(7) == [found[7]['number'], found[7]['number'] + 1]


@pytest.mark.parametrize('fraction', [0, -0.1, 1.5])
def test_out_of_range(fraction, tools, tmp_path, capsys):
    """A share out of range is refused with the range, by the flag and by the data set."""
    with pytest.raises(ValueError, match=r'expected a share in \(0, 1\]'):
        LabelFraction(dict(type='Numbered', length=3), fraction)
    with pytest.raises(SystemExit, match=r'--fraction=.*expected a share in \(0, 1\], such as 0.1'):
        tools.train('upernet', tmp_path, arguments=['--fraction', str(fraction)])


@pytest.mark.parametrize('task', ['upernet', 'mask-rcnn'])
def test_training_reads_only_the_fraction(task, tools, tmp_path, capfd):
    """A run reads exactly the images that the seed chooses, which the plan says; the config that it leaves does the
    same."""
    options = ['train_cfg.max_iters=4'] if task == 'upernet' else []
    tools.train(task, tmp_path, *options, arguments=['--fraction', '0.5', '--seed', '1'])
    log = next(tmp_path.glob('*/*.log')).read_text()
    total = len(list((tools.data / 'ade' / 'images' / 'training').iterdir()))
    assert f'{max(1, round(total / 2))} of {total} images (fraction 0.5, seed 1), batch 2' in log
    written = next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert "type='LabelFraction'" in written and 'seed=1' in written
