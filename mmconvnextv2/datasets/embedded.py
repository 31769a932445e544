"""Procedural pictures: textured objects that occlude each other on textured grounds.

A picture depends on (seed, split, index) alone. Every split is written in COCO instance layout and in ADE20K layout
(label 0 = unlabelled, then grounds, then objects, for ``reduce_zero_label=True``).
"""
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import List, NamedTuple, Tuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

GROUNDS = ('plain', 'stripes', 'marble')
OBJECTS = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
SPLITS = ('unlabelled', 'train', 'val')
ADE_FOLDERS = {'train': 'training', 'val': 'validation'}


@dataclass(frozen=True)
class EmbeddedSpec:
    """What to draw.

    Args:
        unlabelled (int): Pictures without labels. Defaults to 1000.
        train (int): Labelled training pictures. Defaults to 240.
        val (int): Labelled validation pictures. Defaults to 80.
        size (int): Side in pixels, at least 32. Defaults to 128.
        seed (int): Defaults to 0.
    """
    unlabelled: int = 1000
    train: int = 240
    val: int = 80
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 32 or min(self.unlabelled, self.train, self.val) < 1:
            raise ValueError(f'{self}: expected size >= 32 and at least one picture a split')


class Scene(NamedTuple):
    """A picture with its labels: uint8 (H, W, 3), uint8 (H, W), and (category, bool (H, W)) of each visible object."""
    image: np.ndarray
    labels: np.ndarray
    instances: List[Tuple[int, np.ndarray]]


def _smooth_noise(generator: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return noise in [0, 1], (size, size), that varies over ``size / cells`` pixels."""
    coarse = Image.fromarray((generator.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.BICUBIC), dtype=np.float32) / 255


def _ground_texture(generator: np.random.Generator, kind: int, size: int) -> np.ndarray:
    """Return the brightness of a ground, (size, size), about [0, 1]."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    noise = _smooth_noise(generator, size, 8)
    if GROUNDS[kind] == 'plain':
        return 0.5 + 0.15 * (generator.random((size, size)) - 0.5) + 0.2 * (noise - 0.5)
    if GROUNDS[kind] == 'stripes':
        angle, period = generator.uniform(0, np.pi), generator.uniform(6, 12)
        return 0.5 + 0.3 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return 0.5 + 0.4 * np.sin((x + y) / 12 + 8 * noise)


def _shape(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return where an object is, in its own coordinates u, v in [-1, 1]."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    return {
        'disc': lambda: radius < 0.9,
        'square': lambda: np.maximum(abs(u), abs(v)) < 0.75,
        'triangle': lambda: (v > -0.5) & (v < 1 - 1.9 * abs(u)),
        'star': lambda: radius < 0.55 + 0.4 * np.cos(5 * angle),
        'ring': lambda: (radius < 0.95) & (radius > 0.5),
        'cross': lambda: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
    }[OBJECTS[kind]]()


def _object_texture(generator: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of an object, about [0, 1]; shaded from one side."""
    waves = [np.sin(9 * u) * np.sin(9 * v), np.sin(14 * v), np.zeros_like(u)][generator.integers(3)]
    return 0.6 + 0.2 * waves + 0.2 * (u + v) / 2


def _colour(brightness: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Tint brightness (H, W) to (H, W, 3)."""
    return brightness[..., None] * tint


def draw_scene(seed: int, split: int, index: int, size: int) -> Scene:
    """Draw one picture.

    Args:
        seed (int): Of the data set.
        split (int): Index into ``SPLITS``.
        index (int): Number of the picture in its split.
        size (int): Side in pixels.

    Returns:
        Scene: Labels are 1 + ground for the ground and 1 + len(GROUNDS) + category for objects.
    """
    generator = np.random.default_rng((seed, split, index))
    ground = int(generator.integers(len(GROUNDS)))
    image = _colour(_ground_texture(generator, ground, size), generator.uniform(0.3, 1, 3))
    owner = np.full((size, size), -1)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    kinds = generator.integers(len(OBJECTS), size=generator.integers(2, 6))
    for number, kind in enumerate(kinds):
        radius = size * generator.uniform(0.09, 0.26)
        centre = generator.uniform(0.1 * size, 0.9 * size, 2)
        angle = generator.uniform(-0.6, 0.6)
        u = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / radius
        v = ((y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)) / radius
        inside = _shape(int(kind), u, v)
        image[inside] = _colour(_object_texture(generator, u, v), generator.uniform(0.2, 1, 3))[inside]
        owner[inside] = number
    image = image + generator.normal(0, 0.02, image.shape)
    labels = np.full((size, size), 1 + ground, np.uint8)
    instances = []
    for number, kind in enumerate(kinds):
        visible = owner == number
        labels[visible] = 1 + len(GROUNDS) + kind
        if visible.sum() >= 20:
            instances.append((int(kind), visible))
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), labels, instances)


def make_embedded(root: str, spec: EmbeddedSpec = EmbeddedSpec()) -> bool:
    """Write the data set to ``root``; all or nothing.

    The folder gets ``unlabelled/``, ``coco/{train2017,val2017,annotations}`` and
    ``ade/{images,annotations}/{training,validation}``.

    Returns:
        bool: Whether it was drawn; False when ``root`` holds the same already.

    Raises:
        ValueError: If ``root`` exists and holds anything else.
    """
    manifest = os.path.join(root, 'spec.json')
    if os.path.exists(manifest):
        with open(manifest) as file:
            if json.load(file) == asdict(spec):
                return False
    if os.path.exists(root):
        raise ValueError(f'{root} exists and does not hold {spec}: choose another folder or remove it')
    partial = f'{root.rstrip(os.sep)}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(os.path.join(partial, 'coco', 'annotations'))
    os.makedirs(os.path.join(partial, 'unlabelled'))
    for index in range(spec.unlabelled):
        scene = draw_scene(spec.seed, 0, index, spec.size)
        Image.fromarray(scene.image).save(os.path.join(partial, 'unlabelled', f'{index:06}.png'))
    for split in ('train', 'val'):
        _write_labelled(partial, split, spec)
    with open(os.path.join(partial, 'spec.json'), 'w') as file:
        json.dump(asdict(spec), file)
    os.replace(partial, root)
    return True


def _write_labelled(root: str, split: str, spec: EmbeddedSpec) -> None:
    """Write one split in both layouts."""
    folders = [os.path.join(root, 'coco', f'{split}2017'), os.path.join(root, 'ade', 'images', ADE_FOLDERS[split]),
               os.path.join(root, 'ade', 'annotations', ADE_FOLDERS[split])]
    for folder in folders:
        os.makedirs(folder)
    images, annotations = [], []
    for index in range(getattr(spec, split)):
        scene = draw_scene(spec.seed, SPLITS.index(split), index, spec.size)
        name = f'{index:06}.png'
        for folder in folders[:2]:
            Image.fromarray(scene.image).save(os.path.join(folder, name))
        Image.fromarray(scene.labels).save(os.path.join(folders[2], name))
        images.append(dict(id=index, file_name=name, width=spec.size, height=spec.size))
        for category, mask in scene.instances:
            annotations.append(_annotation(len(annotations) + 1, index, category, mask))
    categories = [dict(id=number + 1, name=name) for number, name in enumerate(OBJECTS)]
    with open(os.path.join(root, 'coco', 'annotations', f'instances_{split}2017.json'), 'w') as file:
        json.dump(dict(images=images, annotations=annotations, categories=categories), file)


def _annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict:
    """Return a COCO annotation of a bool mask (H, W); category ids count from 1."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = [float(value) for value in coco_mask.toBbox(encoded)]
    segmentation = dict(size=encoded['size'], counts=encoded['counts'].decode())
    return dict(id=number, image_id=image, category_id=category + 1, bbox=box, area=int(mask.sum()), iscrowd=0,
                segmentation=segmentation)
