"""Masks of ranges, blocks and regions show the same number of cells in each image of a batch, the ones asked for."""

import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip
from mmpretrain.structures import DataSample
from PIL import Image

from mmconvnextv2.pretrain import FCMAEMaskGenerator, LoadRegions, RandomResizedCropWithRegions
from mmconvnextv2.pretrain.masking import num_visible, regions_of_cells, stack_visible_cells
from mmconvnextv2.pretrain.sampler import seeded

CPU = torch.device('cpu')


def mask(generator, seed, size=(112, 112), **results):
    with seeded(seed):
        return generator.transform(dict(img=np.zeros((*size, 3), np.uint8), **results))


def batch(generator, seeds):
    keys = ('visible_cells', 'cell_order', 'cell_size')
    made = [mask(generator, seed) for seed in seeds]
    return [DataSample(metainfo={key: one[key] for key in keys if key in one}) for one in made]


@pytest.mark.parametrize('pattern', ('random', 'blocks'))
def test_a_range_gives_each_batch_one_ratio(pattern):
    """All images of a batch show the K of the first; over batches all ratios of the range occur, and nothing else; the
    same seeds give the same masks."""
    generator = FCMAEMaskGenerator(mask_ratio=(0.5, 0.8), num_ratios=4, cell=16, pattern=pattern)
    counts = set()
    for first in range(0, 120, 3):
        samples = batch(generator, range(first, first + 3))
        cells = stack_visible_cells(samples, CPU, cell=16)
        assert cells.shape == (3, len(samples[0].visible_cells))
        assert torch.equal(cells[0], torch.from_numpy(samples[0].visible_cells))
        assert (cells[:, 1:] > cells[:, :-1]).all() and cells.min() >= 0 and cells.max() < 49
        again = stack_visible_cells(batch(generator, range(first, first + 3)), CPU)
        assert torch.equal(cells, again)
        counts.add(cells.shape[1])
    assert counts == {num_visible(49, ratio) for ratio in (0.5, 0.6, 0.7, 0.8)}


def test_one_ratio_keeps_its_masks():
    """Without a range and a pattern, masks are those that a permutation of numpy's generator gives, as before."""
    with seeded(3):
        expected = np.sort(np.random.permutation(49)[:19])
    results = mask(FCMAEMaskGenerator(0.6), 3, (224, 224))
    assert np.array_equal(results['visible_cells'], expected) and 'cell_order' not in results
    assert results['cell_size'] == 32
    assert np.array_equal(mask(FCMAEMaskGenerator(0.6, cell=16), 3)['visible_cells'], expected)


def neighbours(masked):
    """Number of pairs of masked cells that touch, of a bool map."""
    return int((masked[1:] & masked[:-1]).sum() + (masked[:, 1:] & masked[:, :-1]).sum())


def test_blocks_are_contiguous():
    """The first block of an order is a rectangle, and masks of blocks have more touching cells than random ones."""
    pairs = {}
    for pattern in ('random', dict(type='blocks', scale=(0.2, 0.3), aspect=(0.7, 1.5))):
        generator = FCMAEMaskGenerator((0.55, 0.6), num_ratios=2, cell=16, pattern=pattern)
        touching = []
        for seed in range(30):
            results = mask(generator, seed)
            assert sorted(results['cell_order']) == list(range(49))
            masked = np.ones(49, bool)
            masked[results['visible_cells']] = False
            touching.append(neighbours(masked.reshape(7, 7)))
            if pattern != 'random':  # the smallest block has round(sqrt(0.2 * 49 / 1.5)) = 3 rows and columns
                rows, columns = np.divmod(results['cell_order'][-9:], 7)
                width = next(count for count in range(1, 10) if count == 9 or rows[-1 - count] != rows[-1])
                assert width >= 3 and (np.diff(columns[-width:]) == -1).all()
        pairs[str(pattern)] = np.mean(touching)
    assert list(pairs.values())[1] > list(pairs.values())[0] + 5


@pytest.mark.parametrize('pattern', ('random', 'blocks'))
def test_regions_decide_for_their_cells(pattern):
    """One pixel of 1 shows its cell and one of 2 masks it, for any ratio of the range; the others vary."""
    regions = np.zeros((112, 112), np.uint8)
    regions[17, 40], regions[100, 111] = 1, 1  # cells (1, 2) and (6, 6)
    regions[60:90, 3:20] = 2  # cells (3, 0) to (5, 1)
    shown, hidden = {9, 48}, {21, 22, 28, 29, 35, 36}
    assert set(np.flatnonzero(regions_of_cells(regions, (112, 112), 16) == 2)) == hidden
    generator, seen = FCMAEMaskGenerator((0.5, 0.9), cell=16, pattern=pattern), set()
    for seed in range(80):
        results = mask(generator, seed, gt_seg_map=regions)
        for count in (num_visible(49, 0.5), num_visible(49, 0.9)):
            cells = set(results['cell_order'][:count].tolist())
            assert shown <= cells and not cells & hidden and len(cells) == count
        seen |= set(results['visible_cells'].tolist())
    assert len(seen) == 49 - len(hidden)


def test_regions_are_read_and_move_along(tmp_path):
    """PNG and array maps belong to images by path; a crop, a resize and a flip move a map as they move the image."""
    (tmp_path / 'maps/a').mkdir(parents=True)
    regions = np.zeros((60, 80), np.uint8)
    regions[10:30, 20:50], regions[40:50, 60:75] = 1, 2
    Image.fromarray(regions).save(tmp_path / 'maps/a/1.png')
    np.save(tmp_path / 'maps/2.npy', regions)
    load = LoadRegions(str(tmp_path / 'maps'), str(tmp_path / 'images'))
    image = np.repeat(100 * regions[..., None], 3, 2)
    for path, expected in (('a/1.jpg', regions), ('2.tif', regions), ('3.jpg', 0 * regions)):
        results = load.transform(dict(img=image, img_path=str(tmp_path / 'images' / path)))
        assert np.array_equal(results['gt_seg_map'], expected)
    crop = RandomResizedCropWithRegions(scale=64, crop_ratio_range=(0.3, 0.8), interpolation='nearest')
    for seed in range(6):
        with seeded(seed):
            results = RandomFlip(prob=0.5).transform(crop.transform(dict(img=image, gt_seg_map=regions)))
        assert results['img'].shape == (64, 64, 3)
        assert np.array_equal(results['img'][..., 0], 100 * results['gt_seg_map'])
    with pytest.raises(ValueError, match=r'the map of regions in .*maps is \(60, 80\), the image \(30, 80\) pixels'):
        load.transform(dict(img=image[:30], img_path=str(tmp_path / 'images/2.jpg')))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(mask_ratio=(0.8, 0.5)), r'mask_ratio=\(0.8, 0.5\): expected a share .* or the smallest and the largest'),
        (dict(mask_ratio=(0.5, 1.0)), r'mask_ratio=\(0.5, 1.0\): expected a share of masked cells in \(0, 1\)'),
        (dict(mask_ratio=(0.5, 0.99)), r'images of 112x112 pixels: mask_ratio=0.99 masks every cell of 49: choose'),
        (dict(pattern='rings'), "pattern='rings' of FCMAEMaskGenerator: choose from .'blocks', 'random'."),
        (dict(pattern=dict(type='blocks', size=3)), "does not know size: choose from .'scale', 'aspect'."),
        (dict(pattern=dict(type='blocks', scale=(0.5, 1.5))), r'scale=\(0.5, 1.5\), expected a range'),
        (dict(cell=0), 'cell=0 of FCMAEMaskGenerator: expected positive integers'),
        (dict(cell=32), r'gives images of 112x112 pixels: FCMAE needs multiples of 32; change the size of the crop'),
    ],
)
def test_bad_masks_are_refused(arguments, message):
    """Ratios, patterns and cells that cannot work are refused with what to choose."""
    with pytest.raises(ValueError, match=message):
        mask(FCMAEMaskGenerator(**dict(cell=16) | arguments), 0)


def test_bad_regions_are_refused():
    """Regions that mask or show too many cells name the image and the counts; other sizes and values are refused."""
    generator = FCMAEMaskGenerator(0.6, cell=16)
    regions = np.zeros((112, 112), np.uint8)
    regions[:, 20:] = 2
    with pytest.raises(
        ValueError, match='regions of a.png mask 42 of 49 cells, .*mask_ratio=0.6 needs 19 visible ones'
    ):
        mask(generator, 0, gt_seg_map=regions, img_path='a.png')
    with pytest.raises(ValueError, match='show 42 of 49 cells, .*has only 19 visible ones: mark fewer pixels with 1'):
        mask(generator, 0, gt_seg_map=regions // 2)
    with pytest.raises(ValueError, match=r'has \(96, 112\) pixels, but the image \(112, 112\): it must be resized'):
        mask(generator, 0, gt_seg_map=regions[:96])
    with pytest.raises(ValueError, match=r'holds \[8\]: expected 1 where a cell must be visible, 2'):
        mask(generator, 0, gt_seg_map=regions * 4)
    samples = [DataSample(metainfo=dict(visible_cells=np.arange(count))) for count in (2, 3)]
    with pytest.raises(ValueError, match="range of mask ratios, put 'cell_order' in meta_keys"):
        stack_visible_cells(samples, CPU)
