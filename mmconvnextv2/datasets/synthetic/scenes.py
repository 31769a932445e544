"""Procedural scenes: textured, shaded objects that occlude each other on textured grounds.

A scene depends only on (seed, split, index). Each object class has its own shape, a texture of varying scale and phase,
and a hue around which its objects vary. Grounds can have any hue.
"""

from colorsys import hsv_to_rgb
from typing import NamedTuple

import numpy as np
from PIL import Image

GROUNDS = ('plain', 'stripes', 'marble', 'tiles')
OBJECTS = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
SPLITS = ('unlabelled', 'train', 'val')
MIN_VISIBLE = 0.3  # minimum visible share of an object's area; objects that show less are left out
MIN_PIXELS = 30  # minimum visible pixels at a size of 128; scales with the area of the image


class Scene(NamedTuple):
    """An image with its labels.

    Attributes:
        image (np.ndarray): RGB, uint8, (H, W, 3).
        labels (np.ndarray): uint8, (H, W): 1 + ground, or 1 + len(GROUNDS) + category; never 0 (unlabelled).
        instances (list): Category and visible mask, bool (H, W), of each object. Masks do not overlap.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: list[tuple[int, np.ndarray]]


class Placement(NamedTuple):
    """An object's class and local coordinates ``u``, ``v``, each (H, W); the object is within [-1, 1]."""

    kind: int
    u: np.ndarray
    v: np.ndarray


def _smooth_noise(generator: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return noise in [0, 1], (size, size), that varies over ``size / cells`` pixels."""
    coarse = Image.fromarray((generator.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.BICUBIC), dtype=np.float64) / 255


def _wave(phase: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(phase)


def _ground_texture(generator: np.random.Generator, kind: int, size: int) -> np.ndarray:
    """Return a ground's pattern in [0, 1], (size, size): the weight of its light colour."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    angle, period = generator.uniform(0, np.pi), generator.uniform(7, 14)
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    return {
        'plain': lambda: 0.7 * _smooth_noise(generator, size, 6) + 0.3 * generator.random((size, size)),
        'stripes': lambda: _wave(along),
        'marble': lambda: _wave((x + y) / 12 + 9 * _smooth_noise(generator, size, 8)),
        'tiles': lambda: 1 - 0.9 * (np.minimum(_wave(along), _wave(across)) < 0.12),
    }[GROUNDS[kind]]()


def object_mask(kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return an object's mask, bool, in the shape of its coordinates ``u``, ``v``."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    return {
        'disc': lambda: radius < 0.9,
        'square': lambda: np.maximum(abs(u), abs(v)) < 0.75,
        'triangle': lambda: (v > -0.5) & (v < 1 - 1.9 * abs(u)),
        'star': lambda: radius < 0.6 + 0.35 * np.cos(5 * angle),
        'ring': lambda: (radius < 0.95) & (radius > 0.5),
        'cross': lambda: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
    }[OBJECTS[kind]]()


def _object_texture(generator: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return an object's pattern in [0, 1], (H, W)."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    scale, phase = generator.uniform(0.8, 1.3), generator.uniform(0, 2 * np.pi)
    return {
        'disc': lambda: _wave(14 * scale * radius + phase),
        'square': lambda: 1.0 * (np.sin(9 * scale * u + phase) * np.sin(9 * scale * v + phase) > 0),
        'triangle': lambda: _wave(16 * scale * v + phase),
        'star': lambda: 1.0 * (generator.random(u.shape) > 0.5),
        'ring': lambda: _wave(np.round(10 * scale) * angle + phase),
        'cross': lambda: np.clip(0.5 + 0.5 * (u * np.cos(phase) + v * np.sin(phase)), 0, 1),
    }[OBJECTS[kind]]()


def _ground_colour(generator: np.random.Generator, pattern: np.ndarray) -> np.ndarray:
    """Blend two random colours by a pattern (H, W) to (H, W, 3)."""
    return _blend(generator.uniform(0.5, 1, 3), generator.uniform(0, 0.5, 3), pattern)


def _object_colour(generator: np.random.Generator, kind: int, pattern: np.ndarray) -> np.ndarray:
    """Blend a light and a dark colour near the class's hue by a pattern (H, W) to (H, W, 3)."""
    hue, saturation = kind / len(OBJECTS) + generator.normal(0, 0.05), generator.uniform(0.5, 0.9)
    light, dark = generator.uniform(0.7, 1), generator.uniform(0.1, 0.4)
    return _blend(*(np.array(hsv_to_rgb(hue % 1, saturation, value)) for value in (light, dark)), pattern)


def _blend(light: np.ndarray, dark: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    return dark + pattern[..., None] * (light - dark)


def _place(generator: np.random.Generator, size: int) -> Placement:
    """Sample an object's class, position, size and angle."""
    kind = int(generator.integers(len(OBJECTS)))
    y, x = np.mgrid[:size, :size].astype(np.float64)
    radius, angle = size * generator.uniform(0.1, 0.28), generator.uniform(-0.6, 0.6)
    x, y = (axis - generator.uniform(0.1 * size, 0.9 * size) for axis in (x, y))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return Placement(kind, u / radius, v / radius)


def _visible_masks(objects: list[Placement]) -> list[np.ndarray]:
    """Return the visible mask of each object, bool (H, W); later objects are in front."""
    masks, covered = [], False
    for item in reversed(objects):
        mask = object_mask(*item)
        masks.append(mask & ~np.asarray(covered))
        covered = mask | covered
    return masks[::-1]


def _place_objects(generator: np.random.Generator, size: int) -> list[Placement]:
    """Sample two to five objects, ordered back to front, and drop those that are hardly visible."""
    objects = [_place(generator, size) for _ in range(generator.integers(2, 6))]
    shown = [mask.sum() for mask in _visible_masks(objects)]
    whole = [object_mask(*item).sum() for item in objects]
    return [
        item
        for item, pixels, area in zip(objects, shown, whole)
        if pixels >= max(MIN_PIXELS * (size / 128) ** 2, MIN_VISIBLE * area)
    ]


def render_scene(seed: int, split: int, index: int, size: int) -> Scene:
    """Render one scene.

    Args:
        seed (int): Seed of the data set.
        split (int): Index into ``SPLITS``.
        index (int): Index of the image in its split.
        size (int): Side of the image in pixels.

    Returns:
        Scene: The image and its labels.
    """
    generator = np.random.default_rng((seed, split, index))
    ground = int(generator.integers(len(GROUNDS)))
    objects = _place_objects(generator, size)
    image = _ground_colour(generator, _ground_texture(generator, ground, size))
    labels = np.full((size, size), 1 + ground, np.uint8)
    masks = _visible_masks(objects)
    for item, mask in zip(objects, masks):
        image[mask] = _object_colour(generator, item.kind, _object_texture(generator, *item))[mask]
        labels[mask] = 1 + len(GROUNDS) + item.kind
    image = image * _light(generator, size) + generator.normal(0, 0.02, image.shape)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), labels, [(item.kind, m) for item, m in zip(objects, masks)])


def _light(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return an illumination that falls from about 1 to 0.6 in a random direction, (size, size, 1)."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = generator.uniform(0, 2 * np.pi)
    return (0.8 + 0.14 * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
