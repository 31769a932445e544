"""Rasters in training: many bands, and windows of files that do not fit into memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from mmconvnextv2.utils.errors import UserError

rasterio = pytest.importorskip('rasterio', reason='needs rasterio: make geo')

from mmconvnextv2.datasets.raster_crops import LoadRasterCrop  # noqa: E402
from mmconvnextv2.datasets.rasters import Raster  # noqa: E402
from mmconvnextv2.pretrain import LoadMultiChannelImage, UnlabelledImages  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from rasters import scene, write_raster  # noqa: E402


@pytest.mark.parametrize('dtype, scale', [(np.uint8, 1), (np.uint16, 257), (np.float32, 1), (np.int16, 1)])
def test_tiff_files_of_many_bands(tmp_path, dtype, scale):
    """A GeoTIFF of twelve bands is read as the .npy array with the same values, on the scale of its dtype."""
    values = scene(40, 50, 12).astype(dtype)
    path = write_raster(tmp_path / 'scene.tif', values)
    np.save(tmp_path / 'scene.npy', values)
    load = LoadMultiChannelImage(channels=12)
    found = [load.transform(dict(img_path=one))['img'] for one in (path, tmp_path / 'scene.npy')]
    assert found[0].dtype == np.float32 and np.array_equal(*found)
    np.testing.assert_allclose(found[0], values / scale, rtol=1e-6)
    big = write_raster(tmp_path / 'big.tif', values, bigtiff='yes')
    assert np.array_equal(load.transform(dict(img_path=big))['img'], found[0])
    with pytest.raises(UserError, match=r'scene.tif has shape \(40, 50, 12\).*channels=5'):
        LoadMultiChannelImage(channels=5).transform(dict(img_path=path))


def test_fcmae_reads_folders_of_geotiffs(tmp_path):
    """UnlabelledImages gives the same crops of GeoTIFFs for the same seed, epoch and index, whole or by windows, and
    replaces a damaged file by the next one."""
    for number in range(3):
        write_raster(tmp_path / f'{number}.tif', scene(90, 80, 6, number))
    (tmp_path / '3.tif').write_bytes((tmp_path / '2.tif').read_bytes()[:6])
    whole = UnlabelledImages(str(tmp_path), [dict(type='LoadMultiChannelImage', channels=6)], max_corrupt_share=0.5)
    assert len(whole) == 4
    assert np.array_equal(whole[1]['img'], scene(90, 80, 6, 1)) and np.array_equal(whole[3]['img'], whole[0]['img'])
    crops = UnlabelledImages(str(tmp_path), [dict(type='LoadRasterCrop', size=32, channels=6)], max_corrupt_share=0.5)
    first = [crops[index]['img'] for index in range(3)]
    assert all(np.array_equal(one, crops[index]['img']) for index, one in enumerate(first))
    for index, one in enumerate(first):
        assert one.shape == (32, 32, 6) and _places(scene(90, 80, 6, index), one)
    assert np.array_equal(crops[3]['img'].shape, (32, 32, 6))


@pytest.mark.parametrize('kind', ['tiles', 'strips', 'array', 'overviews'])
def test_reduced_images(tmp_path, monkeypatch, kind):
    """A reduced image has pixels at equal distances of the whole one, and no block is decoded twice for it."""
    values = scene(700, 1100, 4)
    if kind == 'array':
        path = str(tmp_path / 'scene.npy')
        np.save(path, values)
    else:
        path = write_raster(tmp_path / 'scene.tif', values, block=0 if kind == 'strips' else 64)
    if kind == 'overviews':
        with rasterio.open(path, 'r+') as file:
            file.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    areas, read = [], Raster.read
    monkeypatch.setattr(Raster, 'read', lambda self, area: areas.append(area) or read(self, area))
    with Raster(path, [3, 1]) as raster:
        found = raster.read_reduced(220)
        high, wide = (1, 1) if kind == 'array' else raster._file.block_shapes[0]
    assert found.shape == (140, 220, 2)
    if kind == 'overviews':  # GDAL's own pixels
        assert not areas and np.abs(found - values[::5, ::5, [2, 0]].astype(int)).mean() < 20
        return
    assert np.array_equal(found, values[::5, ::5, [2, 0]])
    assert sum(area.height * area.width for area in areas) == 700 * 1100
    assert all(area.top % high == 0 and area.left % wide == 0 for area in areas)
    assert max(area.height * area.width for area in areas) <= 512 * 512  # memory


def _places(values, crop):
    """Return where a crop is found in an image."""
    high, wide = crop.shape[:2]
    return [
        (top, left)
        for top in range(values.shape[0] - high + 1)
        for left in range(values.shape[1] - wide + 1)
        if np.array_equal(values[top : top + high, left : left + wide], crop)
    ]


def test_crops_with_labels(tmp_path):
    """A crop and its labels are of the same window, which changes; pixels without data are filled and ignored."""
    values = scene(100, 120, 5).astype(np.uint16) * 257
    values[:10] = 0
    labels = (np.add.outer(np.arange(100), np.arange(120)) % 7).astype(np.uint8)[..., None]
    paths = dict(
        img_path=write_raster(tmp_path / 'image.tif', values, nodata=0),
        seg_map_path=write_raster(tmp_path / 'labels.tif', labels, nodata=6),
    )
    load = TRANSFORMS.build(dict(type='LoadRasterCrop', size=(24, 40), channels=5, num_classes=6, fill=[1, 2, 3, 4, 5]))
    expected = values / 257
    expected[:10] = [1, 2, 3, 4, 5]
    wanted = np.where(labels[..., 0] == 6, 255, labels[..., 0])
    wanted[:10] = 255
    np.random.seed(0)
    tops = set()
    for _ in range(12):
        found = load.transform(dict(paths, seg_fields=[]))
        (place,) = _places(expected.astype(np.float32), found['img'])
        tops.add(place[0])
        part = slice(place[0], place[0] + 24), slice(place[1], place[1] + 40)
        assert np.array_equal(found['gt_seg_map'], wanted[part]) and found['gt_seg_map'].dtype == np.uint8
        assert found['seg_fields'] == ['gt_seg_map'] and found['img_shape'] == (24, 40)
    assert len(tops) > 5
    reduced = load.transform(dict(paths, reduce_zero_label=True, label_map={4: 0}))
    assert set(np.unique(reduced['gt_seg_map'])) == {0, 1, 2, 3, 255}  # of 1 to 5, where 4 counts as 0
    small = LoadRasterCrop(size=500, channels=5).transform(dict(img_path=paths['img_path']))
    assert small['img'].shape == (100, 120, 5)


def test_crops_avoid_what_has_no_data(tmp_path):
    """Windows with too few pixels with data are drawn again."""
    values = scene(200, 200, 3)
    values[:, :150] = 0
    path = write_raster(tmp_path / 'image.tif', values, nodata=0)
    load = LoadRasterCrop(size=32, channels=3, min_data=0.9, tries=100)
    np.random.seed(0)
    for _ in range(10):
        image = load.transform(dict(img_path=path))['img']
        assert (image.any(2)).mean() >= 0.9
        assert _places(values[..., ::-1].astype(np.float32), image)  # blue first


def test_wrong_crops(tmp_path):
    """Settings and files that do not fit are refused by name."""
    image, labels = scene(40, 40, 5), np.full((40, 40, 1), 9, np.uint8)
    paths = dict(
        img_path=write_raster(tmp_path / 'image.tif', image), seg_map_path=write_raster(tmp_path / 'labels.tif', labels)
    )
    with pytest.raises(UserError, match=r'labels.tif has labels \[9\] in rows 0 to 39.*expected 0 to 5'):
        LoadRasterCrop(64, 5, num_classes=6).transform(dict(paths))
    with pytest.raises(UserError, match='image.tif has 5 bands, but LoadRasterCrop has channels=4'):
        LoadRasterCrop(64, 4).transform(dict(paths))
    paths['seg_map_path'] = write_raster(tmp_path / 'small.tif', labels[:30])
    with pytest.raises(UserError, match='small.tif has 30 x 40 pixels and 1 bands, its image .* 40 x 40'):
        LoadRasterCrop(64, 5).transform(dict(paths))
    for options in (dict(size=0), dict(size=8, min_data=2), dict(size=8, tries=0), dict(size=8, fill=[1, 2])):
        with pytest.raises(UserError, match='of LoadRasterCrop: expected'):
            LoadRasterCrop(channels=5, **options)
