"""Instances of tiles become instances of the image, in COCO's format and in GeoJSON."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import mmconvnextv2
from mmconvnextv2.engine.inference import predict_raster
from mmconvnextv2.engine.inference.instance_files import encode_instance, outlines, restore_instance, run_lengths
from mmconvnextv2.engine.inference.merging import Instance, merge_instances
from mmconvnextv2.engine.inference.tiles import tile_grid

rasterio = pytest.importorskip('rasterio', reason='needs rasterio: make geo')
from rasterio.features import rasterize  # noqa: E402

from mmconvnextv2.datasets.rasters import Window  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from rasters import write_raster  # noqa: E402

FILES = Path(__file__).parent / 'test_release_0_1' / 'files' / 'mask-rcnn'


def instance_of(mask, label, score, tile, origin=(0, 0), with_mask=True):
    """Return the instance of a mask (H, W) whose first pixel is ``origin``; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    area = Window(int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
    window = area._replace(top=area.top + origin[0], left=area.left + origin[1])
    box = (float(window.left), float(window.top), float(window.right), float(window.bottom))
    return Instance(label, score, box, window, mask[area.slices()].copy() if with_mask else None, tile)


def ellipse(size, row, column, high, wide):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 <= 1


SIZE = (200, 260)
OBJECTS = [  # mask, label
    (ellipse(SIZE, 20, 20, 9, 9), 0),  # in one tile
    (ellipse(SIZE, 52, 20, 3, 12), 0),  # in the overlap of two
    (ellipse(SIZE, 30, 58, 12, 25), 1),  # cut by one border
    (ellipse(SIZE, 56, 56, 8, 8), 0),  # at a corner of four, mostly in their overlap
    (ellipse(SIZE, 130, 150, 50, 90), 1),  # covers whole tiles
    (ellipse(SIZE, 130, 150, 20, 20), 2),  # another class inside of it
    (ellipse(SIZE, 56, 200, 3, 12), 1),
    (ellipse(SIZE, 20, 245, 12, 12), 0),
    (ellipse(SIZE, 47, 245, 12, 12), 0),  # its neighbour, of the same class
]


@pytest.mark.parametrize('side, overlap', [(64, 16), (80, 24), (96, 40), (300, 0)])
def test_pieces_become_the_objects(side, overlap):
    """Objects that tiles see in pieces and twice come out once each, as they were, in any order of the tiles'
    objects."""
    tiles = [tile.window for tile in tile_grid(*SIZE, side, overlap)]
    generator = np.random.default_rng(0)
    pieces = []
    for number, tile in enumerate(tiles):
        for index in generator.permutation(len(OBJECTS)):
            mask, label = OBJECTS[index]
            score = float(generator.random())
            piece = instance_of(mask[tile.slices()], label, score, number, tile[:2])
            if piece is not None:
                pieces.append(piece)
    found = merge_instances(pieces, tiles)
    assert len(found) == len(OBJECTS)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for mask, label in OBJECTS:
        expected = instance_of(mask, label, 0, 0)
        # Duplicates keep up to a tenth of the object less: the pixels that another tile saw in addition
        matches = [one for one in found if one.label == label and _iou(one, expected) > 0.8]
        assert len(matches) == 1, (label, expected.window)
    large = next(one for one in found if one.label == 1 and one.area() > 5000)
    assert (large.window, large.area()) == (Window(80, 60, 101, 181), int(OBJECTS[4][0].sum()))


def _iou(one, other):
    masks = np.zeros((2, *SIZE), bool)
    for place, each in zip(masks, (one, other)):
        place[each.window.slices()] = each.mask
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_neighbours_stay_apart():
    """Objects that touch, of one class and of two, are not united; without masks, boxes are. The score is the
    highest of the pieces."""
    tiles = [Window(0, 0, 64, 64), Window(0, 48, 64, 64)]
    left, right = ellipse((64, 112), 30, 40, 8, 12), ellipse((64, 112), 30, 62, 8, 8)
    whole = ellipse((64, 112), 30, 56, 10, 40)
    pieces = []
    for number, tile in enumerate(tiles):
        for mask, label in ((left & ~right, 0), (right, 0), (whole, 1)):
            pieces.append(instance_of(mask[tile.slices()], label, 0.5 + 0.1 * number, number, tile[:2]))
    found = merge_instances([one for one in pieces if one], tiles)
    assert sorted((one.label, one.area()) for one in found) == [
        (0, right.sum()),
        (0, (left & ~right).sum()),
        (1, whole.sum()),
    ]
    boxes = [one._replace(mask=None) for one in pieces if one and one.label == 1]
    (united,) = merge_instances(boxes, tiles)
    assert united.score == 0.6 and united.box == instance_of(whole, 1, 0, 0).box


def test_run_lengths_are_those_of_coco():
    """Run lengths of a cropped mask are those that pycocotools gives for the whole image, and encoding is lossless."""
    generator = np.random.default_rng(0)
    masks = [generator.random(SIZE) < share for share in (0.02, 0.5)] + [np.ones(SIZE, bool), *(o[0] for o in OBJECTS)]
    single = np.zeros(SIZE, bool)
    single[-1, 3] = single[0, 4] = True  # a run over the end of a column
    for mask in [*masks, single]:
        one = instance_of(mask, 0, 0.25, 5)
        packed = coco_mask.frPyObjects(dict(counts=run_lengths(one, *SIZE), size=list(SIZE)), *SIZE)
        assert packed['counts'] == coco_mask.encode(np.asfortranarray(mask, np.uint8))['counts']
        again = restore_instance(json.loads(json.dumps(encode_instance(one))), 5)
        assert again[:4] == one[:4] and np.array_equal(again.mask, one.mask)


def test_outlines_follow_the_pixels():
    """Outlines, with holes and several parts, cover exactly the mask's pixels."""
    mask = ellipse(SIZE, 100, 100, 40, 60) & ~ellipse(SIZE, 100, 100, 20, 20) | ellipse(SIZE, 30, 30, 4, 4)
    parts = outlines(instance_of(mask, 0, 1.0, 0))
    assert sorted(map(len, parts)) == [1, 2]
    shapes = [dict(type='Polygon', coordinates=[ring.tolist() for ring in rings]) for rings in parts]
    assert np.array_equal(rasterize(shapes, SIZE).astype(bool), mask)


@pytest.fixture(scope='module')
def detector():
    return mmconvnextv2.load(str(FILES / 'config.py'), str(next(FILES.glob('*.pth'))), 'cpu')


@pytest.mark.parametrize('grn', ['tile', 'exact'])
def test_files_of_instances(detector, tmp_path, grn):
    """A detector's files agree with each other: boxes, masks, areas and outlines in the coordinates of the raster; no
    instance is where there is no data."""
    sys.path.insert(0, str(Path(__file__).parent / 'test_release_0_1'))
    from make_data import draw_data

    draw_data(tmp_path / 'data')
    images = [_read(one) for one in sorted((tmp_path / 'data/coco').rglob('*.*')) if one.suffix in ('.png', '.jpg')]
    images = [one for one in images if one.shape == (64, 64, 3)][:3]
    values = np.concatenate([np.concatenate(images, 1), np.concatenate(images[::-1], 1)], 0)  # (128, 192, 3)
    values[:64, :64] = 0
    path = write_raster(tmp_path / 'scene.tif', np.maximum(values, 1) * (values.any(2, keepdims=True)), nodata=0)
    found = predict_raster(detector, path, str(tmp_path), tile=96, overlap=32, grn=grn, score_threshold=0.05)
    coco = COCO(str(tmp_path / found['coco']))
    features = json.loads((tmp_path / found['geojson']).read_text())
    assert features['crs']['properties']['name'] == 'urn:ogc:def:crs:EPSG::32633'
    assert len(coco.anns) == len(features['features']) == sum(found['instances'].values()) > 0
    with rasterio.open(path) as file:
        transform, valid = file.transform, file.dataset_mask() > 0
    for annotation, feature in zip(coco.anns.values(), features['features']):
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation['area'] and not (mask & ~valid).any()
        drawn = rasterize([feature['geometry']], mask.shape, transform=transform).astype(bool)
        assert np.array_equal(drawn, mask)
        assert feature['properties']['score'] == annotation['score'] >= 0.05
        assert feature['properties']['class'] == detector.classes[annotation['category_id'] - 1]


def test_one_tile_finds_what_the_model_finds(detector, tmp_path):
    """In one tile, instances are those that the model predicts for the file without its resizing."""
    generator = np.random.default_rng(0)
    values = generator.integers(1, 255, (96, 128, 3), np.uint8)
    path = write_raster(tmp_path / 'scene.tif', values)
    found = predict_raster(detector, path, str(tmp_path), tile=128, score_threshold=0.0)
    annotations = json.loads((tmp_path / found['coco']).read_text())['annotations']
    results = dict(img=values[..., ::-1].copy(), img_path='', img_id=0, img_shape=(96, 128), ori_shape=(96, 128))
    results['scale_factor'] = (1.0, 1.0)
    steps = detector._transform.transforms
    for step in steps:
        if type(step).__name__ != 'Resize':
            results = step(results)
    data = detector.module.data_preprocessor(dict(inputs=[results['inputs']], data_samples=[results['data_samples']]))
    expected = detector.module.predict(data['inputs'], data['data_samples'])[0].pred_instances
    expected = expected[expected.masks.flatten(1).any(1)]
    boxes = np.array([one['bbox'] for one in annotations]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    assert len(boxes) == len(expected) > 0
    order = np.lexsort(boxes.T), np.lexsort(expected.bboxes.detach().numpy().T)
    np.testing.assert_allclose(boxes[order[0]], expected.bboxes.detach().numpy()[order[1]], atol=1e-3)


def _read(path):
    import mmcv

    return mmcv.imread(str(path), channel_order='rgb')
