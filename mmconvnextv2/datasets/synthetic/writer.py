"""Writer of the embedded data set: unlabelled images, COCO instance layout and ADE20K layout.

In the ADE20K layout label 0 means unlabelled, followed by grounds, then objects, for use with
``reduce_zero_label=True``.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ...utils.errors import UserError
from .scenes import OBJECTS, SPLITS, render_scene

ADE_FOLDERS = {'train': 'training', 'val': 'validation'}
DRAWING = 3  # version of the scenes; a folder written by an earlier version does not count as the same data set


@dataclass(frozen=True)
class EmbeddedSpec:
    """Size and seed of an embedded data set.

    Args:
        unlabelled (int): Number of images without labels, at least 1. Defaults to 1000.
        train (int): Number of labelled training images, at least 1. Defaults to 240.
        val (int): Number of labelled validation images, at least 1. Defaults to 80.
        size (int): Side of the images in pixels, at least 32. Defaults to 128.
        seed (int): Seed of the scenes, at least 0. Defaults to 0.

    Raises:
        ValueError: If a value is out of range; the message names it.
    """

    unlabelled: int = 1000
    train: int = 240
    val: int = 80
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in dict(unlabelled=1, train=1, val=1, size=32, seed=0).items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(f'{name}={value!r}: expected a whole number of at least {least}')

    def manifest(self) -> dict:
        """Return the content of ``spec.json``."""
        return dict(drawing=DRAWING, **asdict(self))


def holds(root: str, spec: EmbeddedSpec) -> bool:
    """Return whether ``root`` is a complete data set of this spec."""
    try:
        with open(os.path.join(root, 'spec.json')) as file:
            return json.load(file) == spec.manifest()
    except (OSError, ValueError):
        return False


def make_embedded(root: str, spec: EmbeddedSpec = EmbeddedSpec()) -> bool:
    """Write the data set to ``root``, completely or not at all.

    The folder gets ``unlabelled/``, ``coco/{train2017,val2017,annotations}``,
    ``ade/{images,annotations}/{training,validation}`` and ``spec.json``, by which the next call recognises it.

    Returns:
        bool: Whether it was written; False if ``root`` already holds the same data set.

    Raises:
        ValueError: If ``root`` exists and is not the same data set.
    """
    if holds(root, spec):
        return False
    if os.path.exists(root):
        raise UserError(f'{root} exists and does not hold {spec} of this version: remove it or choose another folder')
    root = os.path.abspath(root)
    os.makedirs(os.path.dirname(root), exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f'.{os.path.basename(root)}.', dir=os.path.dirname(root))
    try:
        _write(partial, spec)
        os.chmod(partial, 0o755)
        os.rename(partial, root)
    except OSError:
        if holds(root, spec):  # another process wrote it first
            return False
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write(root: str, spec: EmbeddedSpec) -> None:
    """Write all splits, then the manifest."""
    folder = os.path.join(root, 'unlabelled')
    os.makedirs(folder)
    os.makedirs(os.path.join(root, 'coco', 'annotations'))
    for index in range(spec.unlabelled):
        scene = render_scene(spec.seed, SPLITS.index('unlabelled'), index, spec.size)
        Image.fromarray(scene.image).save(os.path.join(folder, f'{index:06}.png'))
    for split in ADE_FOLDERS:
        _write_labelled(root, split, spec)
    with open(os.path.join(root, 'spec.json'), 'w') as file:
        json.dump(spec.manifest(), file)


def _write_labelled(root: str, split: str, spec: EmbeddedSpec) -> None:
    """Write one split in both layouts."""
    folders = [
        os.path.join(root, 'coco', f'{split}2017'),
        os.path.join(root, 'ade', 'images', ADE_FOLDERS[split]),
        os.path.join(root, 'ade', 'annotations', ADE_FOLDERS[split]),
    ]
    for folder in folders:
        os.makedirs(folder)
    images, annotations = [], []
    for index in range(getattr(spec, split)):
        scene = render_scene(spec.seed, SPLITS.index(split), index, spec.size)
        name = f'{index:06}.png'
        for folder, pixels in zip(folders, (scene.image, scene.image, scene.labels)):
            Image.fromarray(pixels).save(os.path.join(folder, name))
        images.append(dict(id=index, file_name=name, width=spec.size, height=spec.size))
        for category, mask in scene.instances:
            annotations.append(_annotation(len(annotations) + 1, index, category, mask))
    categories = [dict(id=number + 1, name=name) for number, name in enumerate(OBJECTS)]
    with open(os.path.join(root, 'coco', 'annotations', f'instances_{split}2017.json'), 'w') as file:
        json.dump(dict(images=images, annotations=annotations, categories=categories), file)


def _annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict:
    """Return the COCO annotation of a bool mask (H, W); category ids count from 1."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = [float(value) for value in coco_mask.toBbox(encoded)]
    segmentation = dict(size=encoded['size'], counts=encoded['counts'].decode())
    return dict(
        id=number,
        image_id=image,
        category_id=category + 1,
        bbox=box,
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=segmentation,
    )
