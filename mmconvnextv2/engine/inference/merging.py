"""Instances of overlapping tiles, united to instances of the image.

Two instances of neighbouring tiles are the same object if they have the same class and their masks agree in the pixels
that both tiles see. If each of them reaches well into pixels that the other's tile does not see, both are pieces of one
object and are united. Otherwise one is a duplicate or a piece of the other, which stays.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ...datasets.rasters import Window

AGREEMENT = 0.5  # least IoU in the shared pixels
UNSEEN = 0.1  # least share of a piece's area outside of the other's tile


class Instance(NamedTuple):
    """One object.

    Attributes:
        label (int): Class index.
        score (float): 0 to 1.
        box (tuple[float, ...]): Left, top, right and bottom in pixels of the image.
        window (Window): Pixels that the mask covers, or those of the box.
        mask (np.ndarray, optional): bool (h, w), in the window; None for detectors of boxes.
        tile (int): Index of its tile.
    """

    label: int
    score: float
    box: tuple[float, ...]
    window: Window
    mask: np.ndarray | None
    tile: int

    def area(self, region: Window | None = None) -> int:
        """Return its number of pixels, in a region if given."""
        region = self.window if region is None else self.window.intersection(region)
        if self.mask is None:
            return region.height * region.width
        return int(self.mask[region.slices(self.window[:2])].sum())


def shared_area(one: Instance, other: Instance, region: Window) -> int:
    """Return the number of pixels that two instances share in a region."""
    region = one.window.intersection(other.window).intersection(region)
    if one.mask is None or other.mask is None:
        return region.height * region.width
    return int((one.mask[region.slices(one.window[:2])] & other.mask[region.slices(other.window[:2])]).sum())


def merge_instances(instances: Sequence[Instance], tiles: Sequence[Window]) -> list[Instance]:
    """Unite the instances of overlapping tiles.

    Args:
        instances (Sequence[Instance]): Instances in pixels of the image; those of a tile are distinct objects.
        tiles (Sequence[Window]): Window of each tile, in raster order.

    Returns:
        list[Instance]: Instances of the image, highest score first. A united one has the union of the masks, the
        highest score and the first tile of its pieces.
    """
    by_tile: dict[int, list[int]] = {}
    for number, one in enumerate(instances):
        by_tile.setdefault(one.tile, []).append(number)
    pieces, dropped = [], set()
    used = sorted(by_tile)
    for place, first in enumerate(used):
        for second in used[place + 1 :]:
            if tiles[second].top >= tiles[first].bottom:  # tiles are in raster order
                break
            strip = tiles[first].intersection(tiles[second])
            near = [[one for one in by_tile[tile] if instances[one].area(strip)] for tile in (first, second)]
            for a in near[0]:
                for b in near[1]:
                    one, other = instances[a], instances[b]
                    if one.label != other.label or not _agree(one, other, strip):
                        continue
                    reach = [1 - one.area(strip) / one.area(), 1 - other.area(strip) / other.area()]
                    if min(reach) > UNSEEN:
                        pieces.append((a, b))
                    elif max(reach) > UNSEEN:
                        dropped.add(a if reach[0] < reach[1] else b)
                    else:  # each tile sees all of it
                        dropped.add(a if one.score < other.score else b)
    groups = _components(len(instances), [pair for pair in pieces if not dropped & set(pair)])
    united = [_unite([instances[one] for one in group]) for group in groups if group[0] not in dropped]
    return sorted(united, key=lambda one: (-one.score, one.tile, one.box))


def _agree(one: Instance, other: Instance, strip: Window) -> bool:
    shared = shared_area(one, other, strip)
    return shared > 0 and shared >= AGREEMENT * (one.area(strip) + other.area(strip) - shared)


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of a graph of ``count`` nodes, each in ascending order."""
    edges = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), tuple(edges)), (count, count))
    groups: dict[int, list[int]] = {}
    for node, label in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups.setdefault(label, []).append(node)
    return list(groups.values())


def _unite(pieces: Sequence[Instance]) -> Instance:
    if len(pieces) == 1:
        return pieces[0]
    top, left = min(one.window.top for one in pieces), min(one.window.left for one in pieces)
    bottom, right = max(one.window.bottom for one in pieces), max(one.window.right for one in pieces)
    window, mask = Window(top, left, bottom - top, right - left), None
    if pieces[0].mask is not None:
        mask = np.zeros((window.height, window.width), bool)
        for one in pieces:
            mask[one.window.slices((top, left))] |= one.mask
    low, high = np.min([one.box[:2] for one in pieces], 0), np.max([one.box[2:] for one in pieces], 0)
    best = max(one.score for one in pieces)
    return Instance(pieces[0].label, best, (*map(float, low), *map(float, high)), window, mask, pieces[0].tile)
