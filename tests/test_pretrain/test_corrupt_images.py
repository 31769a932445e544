"""Unreadable images are skipped, named and counted, and too many stop the run."""

import logging

import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.pretrain import DeterministicSampler, UnlabelledImages

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='FCMAEMaskGenerator'),
    dict(type='PackInputs', meta_keys=('img_path', 'visible_cells')),
]


@pytest.fixture
def folder(tmp_path):
    """Nine good images in mixed formats and folders, and one that is cut short."""
    generator = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / 'deep' / str(number % 3) / f'{number}.{("png", "jpg", "bmp")[number % 3]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(path)
    (tmp_path / 'deep' / '1' / '4.jpg').write_bytes(b'\xff\xd8\xff\xe0 no image')
    return tmp_path


def read(dataset, num_workers):
    loader = DataLoader(
        dataset, batch_size=None, sampler=DeterministicSampler(dataset, seed=0), num_workers=num_workers
    )
    return [sample['data_samples'].img_path for sample in loader]


@pytest.mark.parametrize('num_workers', (0, 2))
def test_corrupt_image_is_skipped(folder, num_workers):
    """The next image takes the place of the corrupt one, and an epoch keeps its length."""
    paths = read(UnlabelledImages(str(folder), PIPELINE), num_workers)
    assert len(paths) == 10 and len(set(paths)) == 9
    assert not any(path.endswith('4.jpg') for path in paths)


def test_corrupt_image_is_named(folder):
    """The log names the file and counts it, once."""
    dataset, said = UnlabelledImages(str(folder), PIPELINE), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    read(dataset, 0)
    read(dataset, 0)
    logger.removeHandler(handler)
    assert len(said) == 1 and '4.jpg' in said[0] and '1 unreadable of 10' in said[0]


def test_too_many_corrupt_images_stop_the_run(folder):
    """Above the set share the run stops and names the files; a bad share is refused."""
    (folder / 'deep' / '0' / '3.png').write_bytes(b'')
    (folder / 'deep' / '2' / '8.bmp').write_bytes(b'BM')
    with pytest.raises(RuntimeError, match='2 of 10 images are unreadable, .*max_corrupt_share=0.1 .*(3.png|8.bmp)'):
        for _ in range(2):
            read(UnlabelledImages(str(folder), PIPELINE, max_corrupt_share=0.1), 0)
    with pytest.raises(ValueError, match='max_corrupt_share=2'):
        UnlabelledImages(str(folder), PIPELINE, max_corrupt_share=2)
