"""Data loading benchmark: the ways to read images for FCMAE, and torchvision's, on the same folder."""

import atexit
import tempfile
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import default_loader

import mmconvnextv2.pretrain  # noqa: F401, registers the data set
from mmconvnextv2.commands.pack import pack_images

CONFIG = 'configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'
MOST = 128  # images per round
UPSTREAM = dict(
    LoadImageForCrop='LoadImageFromFile', FastRandomResizedCrop='RandomResizedCrop', FastRandomFlip='RandomFlip'
)


def pipelines(folder):
    """Return the number of images, and for each way a function that reads them once; the first one is the default."""
    work = tempfile.TemporaryDirectory()
    atexit.register(work.cleanup)
    if not folder:
        Path(work.name, 'images').mkdir()
        folder = write_images(Path(work.name, 'images'))
    packed = str(Path(work.name, 'images.pack'))
    pack_images(folder, packed, workers=1)
    ways = {
        'regions (as configured)': build(folder),
        "mmcv's and mmpretrain's transforms (before)": build(folder, upstream=True),
        'reduced': build(folder, reduced=True),
        'packed': build(packed),
    }
    ours = ways['regions (as configured)']
    count = min(len(ours), MOST)
    paths = [ours.get_data_info(index)['img_path'] for index in range(count)]
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )  # uint8 as in ours, which normalises on the device
    torch.set_num_threads(1)
    check_equal(ways, count)
    steps = {name: (lambda way=way: [way[index] for index in range(count)]) for name, way in ways.items()}
    return count, {**steps, 'torchvision': lambda: [theirs(default_loader(path)) for path in paths]}


def build(data_root, upstream=False, reduced=False):
    """Build the recipe's data set, with other transforms if asked to."""
    config = Config.fromfile(CONFIG).train_dataloader.dataset
    config.data_root = data_root
    if upstream:
        for step in config.pipeline:
            step.type = UPSTREAM.get(step.type, step.type)
    if reduced:
        config.pipeline[0].reduced = True
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(config)


def check_equal(ways, count):
    """Exit if the configured way gives other pixels or masks than upstream's transforms."""
    ours, theirs = list(ways.values())[:2]
    for index in range(count):
        own, other = ours[index], theirs[index]
        same_cells = (own['data_samples'].visible_cells == other['data_samples'].visible_cells).all()
        if not (same_cells and torch.equal(own['inputs'], other['inputs'])):
            raise SystemExit(f'image {index} differs between the ways to read it: nothing was timed')


def write_images(folder, count=64):
    """Write smooth JPEGs of 256 x 341 pixels."""
    random = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(random.integers(256, size=(24, 32, 3), dtype=np.uint8))
        small.resize((341, 256), Image.Resampling.BICUBIC).save(Path(folder, f'{index}.jpg'), quality=90)
    return str(folder)
