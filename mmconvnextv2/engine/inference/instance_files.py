"""Instances of a raster as files: COCO's format, and GeoJSON in the raster's coordinates."""

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ...datasets.rasters import Raster, Window
from .merging import Instance

LARGEST_RLE = 2**32 - 1  # pixels of an image that COCO's run lengths can count


def encode_instance(instance: Instance) -> dict[str, Any]:
    """Return an instance in JSON types, without its tile."""
    mask = None
    if instance.mask is not None:
        coder = import_module('pycocotools.mask')
        mask = coder.encode(np.asfortranarray(instance.mask, np.uint8))['counts'].decode()
    return dict(
        label=instance.label, score=instance.score, box=list(instance.box), window=list(instance.window), mask=mask
    )


def restore_instance(value: dict[str, Any], tile: int) -> Instance:
    """Return an instance of :func:`encode_instance`."""
    window, mask = Window(*value['window']), None
    if value['mask'] is not None:
        coder = import_module('pycocotools.mask')
        size = [window.height, window.width]
        mask = coder.decode(dict(size=size, counts=value['mask'].encode())).astype(bool)
    return Instance(value['label'], value['score'], tuple(value['box']), window, mask, tile)


def run_lengths(instance: Instance, height: int, width: int) -> list[int]:
    """Return COCO's run lengths of a mask in an image of (height, width): column by column, pixels outside first."""
    assert instance.mask is not None
    window = instance.window
    padded = np.zeros((window.height + 2, window.width), np.int8)
    padded[1:-1] = instance.mask
    columns, rows = np.nonzero(np.diff(padded, axis=0).T)  # starts and ends alternate
    places = (columns + window.left).astype(np.int64) * height + window.top + rows
    changes = places.reshape(-1, 2)
    joined = changes[1:, 0] == changes[:-1, 1]  # a run that ends a column and one that begins the next
    starts = changes[np.r_[True, ~joined], 0]
    ends = changes[np.r_[~joined, True], 1]
    counts = np.diff(np.stack([starts, ends], 1).flatten(), prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]


def outlines(instance: Instance) -> list[list[np.ndarray]]:
    """Return the polygons of an instance along the edges of its pixels.

    Returns:
        list[list[np.ndarray]]: For each connected part its outer ring and its holes, closed, as columns and rows (N, 2)
        of pixel corners in the image.
    """
    if instance.mask is None:
        left, top, right, bottom = instance.box
        return [[np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], float)]]
    shapes = import_module('rasterio.features').shapes
    mask = instance.mask.astype(np.uint8)
    offset = np.array([instance.window.left, instance.window.top], float)
    found = [shape['coordinates'] for shape, _ in shapes(mask, mask=instance.mask)]
    return [[np.asarray(ring, float) + offset for ring in rings] for rings in found]


def write_coco(path: str, instances: Sequence[Instance], raster: Raster, classes: Sequence[str]) -> None:
    """Write instances as COCO's json of one image, with scores; class i has the category id i + 1."""
    annotations = []
    for number, one in enumerate(instances, 1):
        left, top, right, bottom = one.box
        annotation = dict(
            id=number,
            image_id=1,
            category_id=one.label + 1,
            bbox=[left, top, right - left, bottom - top],
            area=float(one.area()) if one.mask is not None else (right - left) * (bottom - top),
            iscrowd=0,
            score=one.score,
        )
        if one.mask is not None:
            annotation['segmentation'] = _segmentation(one, raster)
        annotations.append(annotation)
    content = dict(
        images=[dict(id=1, file_name=raster.path, height=raster.height, width=raster.width)],
        categories=[dict(id=label, name=name) for label, name in enumerate(classes, 1)],
        annotations=annotations,
    )
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(content, file)


def _segmentation(instance: Instance, raster: Raster) -> Any:
    """Return run lengths, or polygons without holes for images that are too large for them."""
    if raster.height * raster.width > LARGEST_RLE:
        return [rings[0].flatten().tolist() for rings in outlines(instance)]
    size = [raster.height, raster.width]
    counts = dict(counts=run_lengths(instance, *size), size=size)
    packed = import_module('pycocotools.mask').frPyObjects(counts, *size)
    return dict(size=size, counts=packed['counts'].decode())


def write_geojson(path: str, instances: Sequence[Instance], raster: Raster, classes: Sequence[str]) -> None:
    """Write outlines of instances as GeoJSON, in the raster's coordinates or else in columns and rows of its pixels.

    A member ``crs`` names the coordinate system, as GDAL and QGIS read it.
    """
    features = []
    for number, one in enumerate(instances, 1):
        parts = [[raster.coordinates(ring).tolist() for ring in rings] for rings in outlines(one)]
        geometry: dict[str, Any] = dict(type='MultiPolygon', coordinates=parts)
        if len(parts) == 1:
            geometry = dict(type='Polygon', coordinates=parts[0])
        about = {'id': number, 'class': classes[one.label], 'score': one.score}
        features.append(dict(type='Feature', geometry=geometry, properties=about))
    content: dict[str, Any] = dict(type='FeatureCollection', features=features)
    if raster.crs is not None:
        code = raster.crs.to_epsg()
        known = f'urn:ogc:def:crs:EPSG::{code}' if code else raster.crs.to_wkt()
        content['crs'] = dict(type='name', properties=dict(name=known))
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(content, file)
