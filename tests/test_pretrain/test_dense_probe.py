"""The dense probe's score says how well a linear head reads labels off frozen features."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric
from PIL import Image
from small_models import NARROW
from torch import nn

from mmconvnextv2.pretrain import FCMAE, DenseProbeHook
from mmconvnextv2.pretrain.dense_probe import dense_features, mean_iou, read_labels

SIDE = 96


def make_model():
    torch.manual_seed(0)
    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=12),
        head=dict(type='FCMAEHead'),
        data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.train()


def write_scenes(folder, counts=(12, 6), meaning=True):
    """Write images of 6 x 6 tiles in three colours, with their colours as labels, or labels that mean nothing."""
    random = np.random.default_rng(0)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    for part, count in zip(('train', 'val'), counts):
        for kind in ('images', 'labels'):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            tiles = random.integers(0, 3, (6, 6)).repeat(16, 0).repeat(16, 1)
            pixels = colours[tiles] + random.integers(-20, 20, (SIDE, SIDE, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / 'images' / part / f'{number}.jpg', quality=95)
            labels = tiles if meaning else random.integers(0, 3, (6, 6)).repeat(16, 0).repeat(16, 1)
            labels[:4] = 255
            Image.fromarray(labels.astype(np.uint8)).save(folder / 'labels' / part / f'{number}.png')
    return folder


def score(folder, **options):
    hook = DenseProbeHook(str(folder), **{**dict(image_size=SIDE, stages=(0, 1), epochs=30, batch_size=4), **options})
    hook.before_train(None)
    return hook.evaluate(make_model())['dense_mIoU']


def test_score_is_what_the_features_tell(tmp_path):
    """Labels that colours tell are read off the fine maps of random weights almost without error, less well off the
    coarsest map, whose sites cover several tiles, and labels without a meaning are not; evaluations agree."""
    scenes = write_scenes(tmp_path / 'told')
    fine, coarse = score(scenes), score(scenes, stages=(3,))
    assert fine > 85 and fine > coarse + 15 and fine == score(scenes)
    assert score(write_scenes(tmp_path / 'random', meaning=False)) < 40


def test_features_are_those_of_the_stages():
    """Features are the backbone's maps of normalised RGB images, the coarser ones resized to the finest, and the
    model is left as it was."""
    model = make_model()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    found = dense_features(model, images, (1, 3))
    assert model.backbone.out_indices == (3,) and model.training
    maps, sites = [], (images.float() - 120) / 60
    backbone = model.eval().backbone
    backbone.out_indices = (1, 3)
    with torch.no_grad():
        maps = backbone(sites)
    assert found.shape == (2, NARROW['channels'][1] + NARROW['channels'][3], 8, 12) and found.dtype == torch.float16
    torch.testing.assert_close(found[:, :6].float(), maps[0], rtol=1e-3, atol=1e-3)
    larger = nn.functional.interpolate(maps[1], (8, 12), mode='bilinear')
    torch.testing.assert_close(found[:, 6:].float(), larger, rtol=1e-3, atol=1e-3)


def test_mean_iou_is_that_of_mmseg():
    """The score of a matrix is mmseg's mIoU of the same maps; classes without a label do not count."""
    random = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 4, (20, 30), generator=random) for _ in range(2))
    predicted = torch.where(truth == 1, truth, predicted)
    areas = [area.numpy() for area in IoUMetric.intersect_and_union(predicted, truth, 4, 255)]
    matrix = (truth * 5 + predicted).flatten().bincount(minlength=25).view(5, 5)  # a fifth class, which does not occur
    assert mean_iou(matrix) == pytest.approx(100 * np.mean(areas[0] / areas[1]))


def test_limits_and_classes(tmp_path):
    """Images are taken at even steps up to the limit; labels from num_classes on are ignored."""
    write_scenes(tmp_path, counts=(10, 5))
    hook = DenseProbeHook(str(tmp_path), image_size=32, max_images=4, num_classes=2)
    hook.before_train(None)
    assert [path[-5:] for path in hook._files['train']] == ['0.jpg', '3.jpg', '6.jpg', '9.jpg']
    assert set(hook._labels['train'].unique().tolist()) == {0, 1, 255} and len(hook._labels['val']) == 3


def test_palette_labels_are_indices(tmp_path):
    """PNGs with a palette, as of Pascal VOC, hold indices, whatever their colours."""
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(tmp_path / 'a.png')
    assert image.mode == 'P' and np.array_equal(read_labels(str(tmp_path / 'a.png'), 8), indices)


def test_mistakes_are_refused_before_training(tmp_path):
    """Missing folders and labels, colour labels, a single class and wrong numbers are refused with what to give."""
    with pytest.raises(
        FileNotFoundError, match='images.train of DenseProbeHook does not exist: expected images and labels'
    ):
        DenseProbeHook(str(tmp_path)).before_train(None)
    write_scenes(tmp_path, counts=(2, 1))
    with pytest.raises(ValueError, match='labels of 1 classes: expected two or more'):
        DenseProbeHook(str(tmp_path), num_classes=1).before_train(None)
    (tmp_path / 'labels/train/0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='0.png cannot be read as an image'):
        DenseProbeHook(str(tmp_path)).before_train(None)
    Image.new('RGB', (SIDE, SIDE)).save(tmp_path / 'labels/train/0.png')
    with pytest.raises(ValueError, match='0.png is not a label image'):
        DenseProbeHook(str(tmp_path)).before_train(None)
    (tmp_path / 'labels/train/0.png').unlink()
    with pytest.raises(FileNotFoundError, match='0.jpg has no label: .*0.png'):
        DenseProbeHook(str(tmp_path)).before_train(None)
    for options, message in (
        (dict(interval=0), 'interval=0'),
        (dict(image_size=100), 'a multiple of 32'),
        (dict(stages=(3, 1)), 'ascending stages'),
        (dict(stages=()), 'ascending stages'),
    ):
        with pytest.raises(ValueError, match=message):
            DenseProbeHook('data', **options)
