"""Images that do not fit into memory: tiles give what the whole image gives, and survive what happens in long runs."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmconvnextv2
from mmconvnextv2.commands.predict import parse_args, predict
from mmconvnextv2.engine.inference import predict_raster
from mmconvnextv2.engine.inference.large_images import _Run, _Silent
from mmconvnextv2.engine.inference.tile_store import TileStore
from mmconvnextv2.engine.inference.tiles import TileModel, blending_weights, tile_grid
from mmconvnextv2.engine.inference.whole_image import fixed_norms, norms_of, summing_squares
from mmconvnextv2.utils.errors import UserError

rasterio = pytest.importorskip('rasterio', reason='needs rasterio: make geo')

from mmconvnextv2.datasets.rasters import IGNORED, Raster, Window  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from rasters import CLASSES, PALETTE, scene, segmentor_config, write_model, write_raster  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return a function that loads a narrow segmentor, every parameter of which is random, by its head."""
    folder, loaded = tmp_path_factory.mktemp('models'), {}

    def load(head='UPerHead', bands=3):
        name = f'{head}-{bands}'.lower()
        if name not in loaded:
            files = write_model(folder, segmentor_config(bands, head), name)
            loaded[name] = mmconvnextv2.load(*files, 'cpu'), files
        return loaded[name]

    return load


class Recorded(_Run):
    """Prediction that keeps its logits."""

    def _blend(self, tile, logits):
        if not hasattr(self, 'logits'):
            self.logits = np.zeros((len(logits), self.raster.height, self.raster.width), np.float32)
        total = super()._blend(tile, logits)
        self.logits[(slice(None), *tile.owned.slices())] = total
        return total


def logits_of(model, path, folder, grn, side=128, overlap=32):
    """Return the logits (C, H, W) of a raster in tiles."""
    with Raster(path) as raster:
        run = Recorded(TileModel(model), raster, side, overlap, grn, 0.3)
        run.store = TileStore(str(folder / f'store-{grn}'), {})
        run.predict(_Silent)
    return run.logits


def whole_logits(model, values):
    """Return the logits (C, H, W) of an image in one forward."""
    (sample,) = model.forward([model.read(values)])
    return sample.seg_logits.data.numpy()


@pytest.mark.parametrize('head', ['UPerHead', 'FPNHead', 'FCNHead'])
def test_exact_mode_gives_the_logits_of_the_whole_image(models, tmp_path, head):
    """With norms, pooled maps and neighbours of the whole image, tiles of 128 pixels give its logits to 1e-4, on sides
    that no stride divides; tiles by themselves do not."""
    model, _ = models(head)
    values = scene(470, 349)
    path = write_raster(tmp_path / 'scene.tif', values)
    expected = whole_logits(model, values)
    found = logits_of(model, path, tmp_path, 'exact')
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert abs(logits_of(model, path, tmp_path, 'tile') - expected).max() > 0.02


def test_one_tile_is_the_image(models, tmp_path):
    """A tile that is larger than the image predicts what the model predicts for the image, in every mode."""
    model, _ = models()
    values = scene(96, 128)
    path = write_raster(tmp_path / 'scene.tif', values)
    for grn in ('tile', 'two-pass', 'exact'):
        np.testing.assert_allclose(logits_of(model, path, tmp_path, grn, 256), whole_logits(model, values), atol=1e-5)


def test_sums_of_squares_are_those_of_the_image(models):
    """Squares summed over the parts of tiles are GRN's norms of the image, and a forward with the norms of its own
    sites is unchanged, while one with other norms is not."""
    backbone = models()[0].module.backbone
    images = torch.randn(1, 3, 96, 128)
    given = {}
    hooks = [
        grn.register_forward_hook(lambda grn, inputs, _, name=name: given.update({name: inputs[0]}))
        for name, grn in norms_of(backbone).items()
    ]
    with torch.no_grad():
        expected = backbone(images)
    for hook in hooks:
        hook.remove()
    halves = {}
    for left in (0, 64):
        part = Window(0, left, 96, 64)
        with torch.no_grad(), summing_squares(backbone, (96, 128), Window(0, 0, 96, 128), part) as sums:
            backbone(images)
        halves[left] = sums
    total = {name: halves[0][name] + halves[64][name] for name in given}
    assert set(total) == {'stages.0.0.grn', 'stages.1.0.grn', 'stages.2.0.grn', 'stages.2.1.grn', 'stages.3.0.grn'}
    for name, hidden in given.items():
        np.testing.assert_allclose(total[name], hidden[0].double().pow(2).sum(0), rtol=1e-10)
    with torch.no_grad(), fixed_norms(backbone, total):
        for found, wanted in zip(backbone(images), expected):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), fixed_norms(backbone, {name: one[::-1].copy() for name, one in total.items()}):
        assert (backbone(images)[3] - expected[3]).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[3], expected[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size, side, overlap', [((100, 333), 64, 16), ((64, 64), 64, 0), ((161, 97), 32, 16)])
def test_tiles_cover_an_image(size, side, overlap):
    """Every pixel is owned once, weights sum to 1 in every pixel, and all tiles are full where the image allows it."""
    tiles = tile_grid(*size, side, overlap)
    owned, weight = np.zeros(size), np.zeros(size)
    last = tiles[-1]
    for tile in tiles:
        owned[tile.owned.slices()] += 1
        high = blending_weights(tile.part.height, overlap, tile.row == 0, tile.row == last.row)
        wide = blending_weights(tile.part.width, overlap, tile.column == 0, tile.column == last.column)
        weight[tile.part.slices()] += high[:, None] * wide
        assert tile.window.height == tile.window.width == side
        assert tile.part == tile.part.intersection(tile.window) and tile.owned == tile.owned.intersection(tile.part)
    assert (owned == 1).all()
    np.testing.assert_allclose(weight, 1, atol=1e-6)


def test_logits_blend_over_the_overlap(models, tmp_path):
    """Blended logits are the weighted sums of the tiles' own logits, computed here by accumulation over the image."""
    model, _ = models('FCNHead')
    values = scene(200, 230)
    path = write_raster(tmp_path / 'scene.tif', values)
    expected = np.zeros((len(CLASSES), 200, 230))
    tiles = tile_grid(200, 230, 96, 32)
    for tile in tiles:
        logits = whole_logits(model, values[tile.window.slices()])[(slice(None), *tile.part.slices(tile.window[:2]))]
        ramp = np.sin((np.arange(32) + 0.5) / 32 * np.pi / 2) ** 2
        for axis, (first, final) in enumerate(
            ((tile.row == 0, tile.row == tiles[-1].row), (tile.column == 0, tile.column == tiles[-1].column)), 1
        ):
            weights = np.ones(logits.shape[axis])
            if not first:
                weights[:32] *= ramp
            if not final:
                weights[-32:] *= ramp[::-1]
            logits = logits * (weights[:, None] if axis == 1 else weights)
        expected[(slice(None), *tile.part.slices())] += logits
    np.testing.assert_allclose(logits_of(model, path, tmp_path, 'tile', 96), expected, atol=1e-5)


def test_labels_are_a_georeferenced_raster(models, tmp_path):
    """Labels are the argmax of the logits, in the place of the image, with its colours and classes; pixels without data
    are 255, and tiles without any are not predicted."""
    model, _ = models('FPNHead')
    values = scene(300, 290)
    values[:150, :170] = 0
    values[250:260, 270:280] = 0
    values[200:210, 200:210, 1] = 0  # two bands have data
    path = write_raster(tmp_path / 'scene.tif', values, nodata=0)
    found = predict_raster(model, path, str(tmp_path / 'out'), tile=96, overlap=16)
    nothing = (values == 0).all(2)
    with rasterio.open(tmp_path / 'out' / found['labels']) as labels, rasterio.open(path) as image:
        assert labels.crs == image.crs and labels.transform == image.transform and labels.shape == image.shape
        assert labels.nodata == IGNORED and labels.profile['tiled'] and labels.profile['compress'] == 'deflate'
        assert [labels.colormap(1)[label][:3] for label in range(len(CLASSES))] == PALETTE
        assert [labels.tags(1)[f'class_{label}'] for label in range(len(CLASSES))] == list(CLASSES)
        written = labels.read(1)
    assert (written[nothing] == IGNORED).all() and (written[~nothing] < len(CLASSES)).all()
    logits = logits_of(model, path, tmp_path, 'tile', 96, 16)
    assert (written == logits.argmax(0))[~nothing].all()
    assert not logits[:, :80, :80].any() and logits[:, 150:].all()
    assert found['no_data'] == pytest.approx(100 * nothing.mean(), abs=1e-3)
    counts = np.bincount(written[~nothing], minlength=len(CLASSES))
    assert found['classes'] == {
        name: pytest.approx(100 * count / counts.sum(), abs=1e-3) for name, count in zip(CLASSES, counts) if count
    }
    assert not (tmp_path / 'out' / 'scene.tiles').exists()


def test_pixels_without_data_do_not_count(models, tmp_path):
    """With valid_sites=True, the backbone sees the part of a tile that has data as if it were alone; without, norms
    count the rest. Modes that sum over all sites of the image are refused."""
    model, _ = models('FCNHead', 3)
    values = scene(160, 128)
    values[:64] = 0
    paths = [
        write_raster(tmp_path / 'scene.tif', values, nodata=0),
        write_raster(tmp_path / 'alone.tif', values[64:], nodata=0),
    ]

    def maps():
        found = []
        for path, height in zip(paths, (160, 96)):
            with Raster(path) as raster:
                data, valid = TileModel(model).prepare(raster, Window(0, 0, height, 128))
            assert valid[-96:].all() and not valid[:-96].any()
            with torch.inference_mode():
                found.append(model.module.backbone(data['inputs']))
        return [(one[..., -alone.shape[2] :, :], alone) for one, alone in zip(*found)]

    assert all((part - alone).abs().max() > 1e-3 for part, alone in maps())
    model.module.backbone.valid_sites = True
    try:
        for part, alone in maps():
            torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-5)
        for grn in ('two-pass', 'exact'):
            with pytest.raises(UserError, match='use --grn tile, or set valid_sites=False'):
                predict_raster(model, paths[0], str(tmp_path / 'out'), grn=grn)
    finally:
        model.module.backbone.valid_sites = False


def test_files_without_georeference(models, tmp_path):
    """TIFF, PNG, .npy and a palette PNG give the same labels as a GeoTIFF, without georeference."""
    model, _ = models()
    values = scene(100, 130)
    Image.fromarray(values).save(tmp_path / 'plain.png')
    np.save(tmp_path / 'array.npy', values)
    write_raster(tmp_path / 'plain.tif', values, crs=None, block=None)
    paths = [write_raster(tmp_path / 'geo.tif', values), *(str(tmp_path / one) for one in ('plain.png', 'array.npy'))]
    found = [predict_raster(model, one, str(tmp_path), 64, 16) for one in [*paths, str(tmp_path / 'plain.tif')]]
    assert [one['georeferenced'] for one in found] == [True, False, False, False]
    labels = [rasterio.open(tmp_path / 'labels' / f'{name}.tif').read(1) for name in ('geo', 'plain', 'array')]
    assert all(np.array_equal(labels[0], one) for one in labels[1:])
    palette = Image.fromarray(values).quantize(7)
    palette.save(tmp_path / 'palette.png')
    Image.fromarray(np.asarray(palette.convert('RGB'))).save(tmp_path / 'colours.png')
    for name in ('palette', 'colours'):
        predict_raster(model, str(tmp_path / f'{name}.png'), str(tmp_path), 64, 16)
    labels = [rasterio.open(tmp_path / 'labels' / f'{name}.tif').read(1) for name in ('palette', 'colours')]
    assert np.array_equal(*labels)


def test_bands(models, tmp_path):
    """A model of five bands reads chosen bands of a larger file as it reads these bands alone; 16 bits are read on the
    scale of 8."""
    model, _ = models(bands=5)
    values = scene(80, 100, 9)
    chosen = [9, 2, 3, 7, 1]
    nine = write_raster(tmp_path / 'nine.tif', values)
    five = write_raster(tmp_path / 'five.tif', values[..., [one - 1 for one in chosen]].astype(np.uint16) * 257)
    for path, bands in ((nine, chosen), (five, None)):
        predict_raster(model, path, str(tmp_path), 64, 16, bands=bands)
    labels = [rasterio.open(tmp_path / 'labels' / f'{name}.tif').read(1) for name in ('nine', 'five')]
    assert np.array_equal(*labels) and len(np.unique(labels[0])) > 1
    with pytest.raises(UserError, match=r'nine.tif has 9 bands \(uint8\), but the model reads 5: choose as many with'):
        predict_raster(model, nine, str(tmp_path))
    with pytest.raises(UserError, match=r'bands \[10\].*has the bands 1 to 9'):
        predict_raster(model, nine, str(tmp_path), bands=[10])


@pytest.mark.parametrize(
    'options, said',
    [
        (dict(tile=31), '--tile 31: expected at least 32 pixels'),
        (dict(tile=64, overlap=64), '--overlap 64: expected 0 to 32 pixels, half of --tile 64'),
        (dict(grn='none'), "grn='none' is unknown: choose from"),
        (dict(score_threshold=2), 'score_threshold=2: expected 0 to 1'),
    ],
)
def test_wrong_settings(models, tmp_path, options, said):
    """Settings that cannot be are refused by name."""
    path = write_raster(tmp_path / 'scene.tif', scene(64, 64))
    with pytest.raises(UserError, match=said):
        predict_raster(models()[0], path, str(tmp_path), **options)


def test_wrong_files(models, tmp_path):
    """Files that cannot be predicted are refused by name: too small, of other bands or values, not an image."""
    model, _ = models()
    floats = write_raster(tmp_path / 'float.tif', scene(64, 64).astype(np.float32))
    cases = {
        write_raster(tmp_path / 'small.tif', scene(64, 31), block=None): 'has 64 x 31 pixels: the backbone needs',
        write_raster(tmp_path / 'two.tif', scene(64, 64, 2)): 'has 2 bands, but the model reads 3: choose another',
        floats: 'float.tif: expected uint8 or uint16, got float32',
        str(tmp_path / 'text.tif'): 'cannot be read as a raster',
        str(tmp_path / 'none.tif'): 'does not exist',
    }
    (tmp_path / 'text.tif').write_text('text')
    for path, said in cases.items():
        with pytest.raises(UserError, match=said):
            predict_raster(model, path, str(tmp_path))
    psp, _ = models('PSPHead')
    with pytest.raises(UserError, match='PSPHead may read the whole image.*--grn two-pass'):
        predict_raster(psp, write_raster(tmp_path / 'a.tif', scene(64, 64)), str(tmp_path), grn='exact')


def damage(path, band_block):
    """Overwrite one compressed block of a TIFF."""
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item(f'BLOCK_OFFSET_{band_block}', 'TIFF', bidx=1))
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(b'\xff' * 64)


def test_damaged_blocks(models, tmp_path):
    """A block that cannot be decoded is named with its window, or is no data, while all others keep their labels."""
    model, _ = models()
    values = scene(192, 192)
    path = write_raster(tmp_path / 'scene.tif', values)
    damage(path, '1_1')
    with pytest.raises(UserError, match=r'scene.tif: rows 0 to 95, columns 0 to 95 cannot be decoded .*--skip-corrupt'):
        predict_raster(model, path, str(tmp_path), 96, 0)
    found = predict_raster(model, path, str(tmp_path), 96, 16, skip_corrupt=True)
    labels = rasterio.open(tmp_path / 'labels' / 'scene.tif').read(1)
    assert (labels[64:128, 64:128] == IGNORED).all() and (labels == IGNORED).sum() == 64 * 64
    assert found['no_data'] == pytest.approx(100 / 9, abs=1e-3)
    assert 'rows 64 to 95, columns 64 to 95' in found['corrupt']


@pytest.mark.skipif(os.getuid() != 0, reason='mounts a small disk: run the tests as root')
def test_full_disk(models, tmp_path):
    """On a full disk the run stops with one message, and continues to the same result when there is space."""
    model, _ = models('FPNHead')
    path = write_raster(tmp_path / 'scene.tif', scene(300, 300))
    predict_raster(model, path, str(tmp_path / 'expected'), 64, 16)
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('mounts are not permitted here')
    try:
        with pytest.raises(UserError, match='no space left for .*run the same command to continue'):
            predict_raster(model, path, str(disk), 64, 16)
        done = len(list(disk.glob('scene.tiles/done-*')))
        assert 0 < done < 49
        subprocess.run(['mount', '-o', 'remount,size=20m', disk], check=True)
        predict_raster(model, path, str(disk), 64, 16)
        assert (disk / 'labels/scene.tif').read_bytes() == (tmp_path / 'expected/labels/scene.tif').read_bytes()
    finally:
        subprocess.run(['umount', disk], check=True)


def test_a_killed_run_continues(models, tmp_path):
    """A run that is killed again and again, in each mode and phase, writes what an uninterrupted one writes, bit for
    bit, and does not predict a tile again."""
    values = scene(210, 250)
    values[:64, :64] = 0
    path = write_raster(tmp_path / 'scene.tif', values, nodata=0)
    command = [sys.executable, str(Path(__file__).parent / 'kill_tiles.py'), *models()[1], path, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    for grn, seen in json.loads(done.stdout.splitlines()[-1]).items():
        assert all(one <= other for one, other in pairwise(seen)) and 0 < seen[-1] < (16 if grn == 'exact' else 30), grn
        expected = tmp_path / f'{grn}-expected' / 'labels/scene.tif'
        assert (tmp_path / grn / 'labels/scene.tif').read_bytes() == expected.read_bytes(), grn
        assert [one.name for one in (tmp_path / grn).iterdir()] == ['labels']


def test_other_settings_start_again(models, tmp_path):
    """Intermediate results of other settings are not used."""
    store = TileStore(str(tmp_path / 'store'), dict(tile=1))
    store.save_json('done', 1)
    (tmp_path / 'store' / 'x.partial').touch()
    assert TileStore(str(tmp_path / 'store'), dict(tile=1)).has('done')
    assert not (tmp_path / 'store' / 'x.partial').exists()
    assert not TileStore(str(tmp_path / 'store'), dict(tile=2)).has('done')


def test_the_command(models, tmp_path, capsys):
    """tools/predict.py --tile writes labels, a drawn image and predictions.json, and says what is special."""
    values = scene(100, 130)
    np.save(tmp_path / 'array.npy', values)
    (tmp_path / 'images').mkdir()
    shutil.move(tmp_path / 'array.npy', tmp_path / 'images')
    predict(parse_args([*models()[1], str(tmp_path / 'images'), '--out', str(tmp_path / 'out'), '--tile', '64']))
    printed = capsys.readouterr().out
    assert 'no georeference, so coordinates are columns and rows of pixels' in printed
    content = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert content['classes'] == list(CLASSES) and content['predictions'][0]['labels'] == 'labels/array.tif'
    assert Image.open(tmp_path / 'out/drawn/array.png').size == (130, 100)
    common = [*models()[1], str(tmp_path / 'images'), '--out', str(tmp_path / 'none')]
    for options, said in (
        (['--grn', 'exact', '--overlap', '8'], r'--overlap, --grn: only images that are predicted in tiles'),
        (['--tile', '64', '--grn', 'exact', '--amp', 'bfloat16'], 'leave out --amp and --compile'),
    ):
        with pytest.raises(UserError, match=said):
            predict(parse_args([*common, *options]))
    half = tmp_path / 'half'
    predict(parse_args([*common[:-1], str(half), '--tile', '64', '--amp', 'bfloat16']))
    labels = [np.asarray(Image.open(out / 'labels/array.tif')) for out in (tmp_path / 'out', half)]
    assert (labels[0] == labels[1]).mean() > 0.9


def test_without_rasterio(tmp_path):
    """Where rasterio is missing, one message says how to install it."""
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        'from mmconvnextv2.datasets.rasters import Raster\n'
        f'try: Raster({str(tmp_path / "a.tif")!r})\n'
        'except ValueError as error: print(error)'
    )
    (tmp_path / 'a.tif').touch()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'rasterio is not installed' in done.stdout and 'make geo' in done.stdout
