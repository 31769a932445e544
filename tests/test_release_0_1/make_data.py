"""The data of the runs, rendered the same every time."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmconvnextv2.datasets import EmbeddedSpec, make_embedded


def draw_data(folder: Path) -> None:
    """Draw unlabelled images, COCO, ADE20K and class folders below ``folder``."""
    make_embedded(str(folder), EmbeddedSpec(unlabelled=4, train=4, val=2, size=64))
    random = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('checks', 'rings', 'stripes'):
            (folder / 'folders' / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / 'folders' / split / name / f'{number}.png')
