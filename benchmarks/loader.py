"""Data loading benchmark: the FCMAE pipeline and torchvision's on the same folder."""

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

CONFIG = 'configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'
MOST = 256  # images per round


def pipelines(folder):
    """Return the number of images, and for each pipeline a function that reads them once."""
    if not folder:
        folder = write_images(tempfile.mkdtemp())
    config = Config.fromfile(CONFIG).train_dataloader.dataset
    config.data_root = folder
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        ours = DATASETS.build(config)
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
    return count, {
        'FCMAE pipeline': lambda: [ours[index] for index in range(count)],
        'torchvision': lambda: [theirs(default_loader(path)) for path in paths],
    }


def write_images(folder, count=64):
    """Write smooth JPEGs of 256 x 341 pixels."""
    random = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(random.integers(256, size=(24, 32, 3), dtype=np.uint8))
        small.resize((341, 256), Image.Resampling.BICUBIC).save(Path(folder, f'{index}.jpg'), quality=90)
    return folder
