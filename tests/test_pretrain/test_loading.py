"""All ways to read images for pretraining give the same crops and, but for the reduced one, the same pixels."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import RandomFlip
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.commands.pack import pack_images
from mmconvnextv2.datasets import jpeg, resize
from mmconvnextv2.datasets.packed_images import HEADER, PREFIX, PackedImages
from mmconvnextv2.pretrain import DeterministicSampler, FastRandomFlip, UnlabelledImages

ROOT = Path(__file__).parents[2]
CROP = dict(scale=64, crop_ratio_range=(0.2, 1.0), backend='pillow', interpolation='bicubic')
REST = [
    dict(type='FCMAEMaskGenerator'),
    dict(type='PackInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'visible_cells')),
]
UPSTREAM = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', **CROP),
    dict(type='RandomFlip', prob=0.5),
    *REST,
]
OURS = [
    dict(type='LoadImageForCrop'),
    dict(type='FastRandomResizedCrop', **CROP),
    dict(type='FastRandomFlip', prob=0.5),
    *REST,
]
needs_regions = pytest.mark.skipif(
    not jpeg.load_library(), reason=f'needs libjpeg-turbo 3: make loader, or {jpeg.VARIABLE}=/path/to/libturbojpeg.so'
)
needs_numba = pytest.mark.skipif(not resize.find_kernels(), reason='needs numba: make loader')


def photograph(height, width, seed=0):
    """Smooth colours with some noise, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + random.normal(0, 4, large.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images of all kinds that the reader accepts, in nested folders."""
    root = tmp_path_factory.mktemp('images')
    (root / 'deep').mkdir()
    image = Image.fromarray(photograph(97, 131))
    for name, options in {
        '420': dict(subsampling=2),
        '422': dict(subsampling=1),
        '444': dict(subsampling=0),
        'progressive': dict(progressive=True),
        'restarts': dict(restart_marker_blocks=3),
    }.items():
        image.save(root / f'{name}.jpg', quality=90, **options)
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(root / 'deep' / f'rotated{orientation}.jpg', exif=exif)
    image.convert('L').save(root / 'grey.jpg')
    image.convert('CMYK').save(root / 'deep' / 'cmyk.jpeg')
    image.convert('P').save(root / 'palette.png')
    image.convert('RGBA').save(root / 'alpha.png')
    deep = photograph(97, 131)[..., 0].astype(np.uint16) * 257
    cv2.imwrite(str(root / 'deep' / '16bit.png'), deep)
    image.save(root / 'image.bmp')
    (root / 'tail.jpg').write_bytes((root / '420.jpg').read_bytes() + b'\0\0')  # legal after the end
    return root


def build(root, pipeline, **kwargs):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return UnlabelledImages(str(root), pipeline, **kwargs)


def read(dataset, **options):
    sampler = DeterministicSampler(dataset, seed=3)
    return list(DataLoader(dataset, batch_size=None, sampler=sampler, **options))


def assert_equal(samples, others):
    assert len(samples) == len(others)
    for sample, other in zip(samples, others):
        assert torch.equal(sample['inputs'], other['inputs']), sample['data_samples'].img_path
        own, theirs = sample['data_samples'], other['data_samples']
        assert (own.visible_cells == theirs.visible_cells).all()
        assert own.ori_shape == theirs.ori_shape and own.img_shape == theirs.img_shape


@pytest.mark.parametrize('options', [dict(prob=0.3), dict(prob=0.5), dict(prob=[0.2, 0.3])], ids=str)
def test_flips_drawn_as_mmcv_draws_them(options):
    """The same directions for the same seed, and the same state of numpy's generator afterwards."""
    direction = ['horizontal', 'vertical'] if isinstance(options['prob'], list) else 'horizontal'
    drawn = []
    for kind in (RandomFlip, FastRandomFlip):
        np.random.seed(0)
        step = kind(direction=direction, **options)
        drawn.append(([step._choose_direction() for _ in range(500)], np.random.random_sample()))
    assert drawn[0] == drawn[1] and len(set(drawn[0][0])) > 1


@pytest.mark.parametrize('options', [{}, dict(num_workers=2, persistent_workers=True)], ids=['here', 'workers'])
def test_same_bits_as_upstream(folder, options):
    """Every kind of file gives the crop, flip, pixels and mask of mmcv's and mmpretrain's transforms."""
    assert_equal(read(build(folder, OURS), **options), read(build(folder, UPSTREAM)))


def test_same_bits_without_libraries(folder, monkeypatch):
    """Without numba and libjpeg-turbo nothing changes but the time."""
    expected = read(build(folder, OURS))
    monkeypatch.setattr(resize, 'find_kernels', lambda: None)
    monkeypatch.setattr(jpeg, 'load_library', lambda: None)
    monkeypatch.setattr('mmconvnextv2.pretrain.loading.load_library', lambda: None)
    assert_equal(read(build(folder, OURS)), expected)


@needs_regions
@pytest.mark.parametrize('progressive', [0, 1])
@pytest.mark.parametrize('sampling', ['444', '422', '420', '440', '411', 'grey'])
def test_region_equals_slice_of_whole(sampling, progressive):
    """Any region of any size, odd ones included, has the bits of the whole decoded image: chroma at its border, too."""
    random = np.random.default_rng(0)
    for seed in range(6):
        height, width = random.integers(1, 150, 2)
        image = photograph(height, width, seed)
        options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 99))]
        if sampling == 'grey':
            image = image[..., 0]
        else:
            factor = getattr(cv2, f'IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}')
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
        content = cv2.imencode('.jpg', image, options)[1].tobytes()
        whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        header = jpeg.read_header(content)
        for _ in range(40):
            top, bottom = sorted(random.choice(height + 1, 2, replace=False))
            left, right = sorted(random.choice(width + 1, 2, replace=False))
            box = int(left), int(top), int(right), int(bottom)
            region = jpeg.region_decoder().decode(content, (height, width), box)
            assert np.array_equal(region, whole[top:bottom, left:right])
            lazy = jpeg.JPEGImage(content, header, 'image')
            assert np.array_equal(lazy[top:bottom, left:right, ...], whole[top:bottom, left:right])


@needs_numba
def test_resizing_equals_pillow():
    """Any size, enlarged, reduced or unchanged, in either order of the passes, and any box give Pillow's bits."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (420, 400, 3), dtype=np.uint8)
    for number in range(150):
        rows, columns = random.integers(1, 390, 2)
        height, width = (96, 96) if number % 3 else random.integers(8, 200, 2)
        rows, columns = (height if number % 7 == 0 else rows), (width if number % 11 == 0 else columns)
        part = image[5 : 5 + rows, 7 : 7 + columns]
        box = (0.3, 0.6, columns - 0.25, rows - 0.5) if number % 5 == 0 and min(rows, columns) > 2 else None
        expected = Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC, box)
        assert np.array_equal(resize.resize_bicubic(part, height, width, box), np.asarray(expected))


def test_reduced_decoding_is_close(tmp_path, monkeypatch):
    """Large photographs decoded at a half or less give the same crop with at least 30 dB, by either decoder."""
    for number in range(4):
        Image.fromarray(photograph(601, 803, number)).save(tmp_path / f'{number}.jpg', quality=92)
    expected = read(build(tmp_path, OURS))
    reduced = [dict(type='LoadImageForCrop', reduced=True), *OURS[1:]]
    ways = [read(build(tmp_path, reduced))]
    monkeypatch.setattr(jpeg, 'load_library', lambda: None)
    ways.append(read(build(tmp_path, reduced)))
    for samples in ways:
        for sample, other in zip(samples, expected):
            error = (sample['inputs'].float() - other['inputs'].float()).square().mean()
            assert 0 < error < 255**2 / 10**3.0
            assert (sample['data_samples'].visible_cells == other['data_samples'].visible_cells).all()


@pytest.mark.parametrize('reduced', [False, True])
def test_damaged_jpegs_are_skipped_as_before(folder, tmp_path, reduced):
    """A file that is cut short or has no pixels takes the same images' places as with mmcv's loader."""
    for path in sorted(folder.glob('*.jpg')):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (folder / '420.jpg').read_bytes()
    for percent in (50, 80, 90, 95, 98, 99):
        (tmp_path / f'a_cut{percent}.jpg').write_bytes(content[: len(content) * percent // 100])
    (tmp_path / 'b_header.jpg').write_bytes(content[:300])
    (tmp_path / 'c_empty.jpg').write_bytes(b'')
    pipeline = [dict(type='LoadImageForCrop', reduced=reduced), *OURS[1:]]
    ours = build(tmp_path, pipeline, max_corrupt_share=0.9)
    theirs = build(tmp_path, UPSTREAM, max_corrupt_share=0.9)
    assert_equal(read(ours), read(theirs))
    assert torch.equal(ours._corrupt, theirs._corrupt) and ours._corrupt.sum() >= 2


def test_packed_file_gives_the_same_samples(folder, tmp_path):
    """Images that were not reduced train as their files do; the views are mapped, and workers and pickles read them."""
    packed = str(tmp_path / 'images.pack')
    said = pack_images(str(folder), packed, side=0, workers=2)
    expected = read(build(folder, UPSTREAM))
    assert f'{len(expected)} images' in said[0]
    for pipeline in (OURS, UPSTREAM):
        dataset = build(packed, pipeline)
        assert_equal(read(dataset), expected)
    assert not dataset.pipeline.transforms[0].packed[0].flags.owndata
    assert_equal(read(pickle.loads(pickle.dumps(dataset))), expected)
    assert_equal(read(dataset, num_workers=1, multiprocessing_context='spawn'), expected)
    names = {os.path.relpath(sample['data_samples'].img_path, packed) for sample in read(dataset)}
    assert names == {str(path.relative_to(folder)) for path in folder.rglob('*.*')}
    assert 'all as written' in pack_images(str(folder), packed)[0]


def test_packing_reduces_as_pillow(tmp_path):
    """Images above the short side are resized to it, bicubic; smaller ones stay; unreadable ones are listed."""
    root = tmp_path / 'images'
    root.mkdir()
    for name, size in {'a': (90, 120), 'b': (120, 90), 'c': (40, 30)}.items():
        Image.fromarray(photograph(*size)).save(root / f'{name}.png')
    (root / 'd.png').write_bytes(b'no image')
    said = pack_images(str(root), str(tmp_path / 'images.pack'), side=60, workers=0)
    assert said[0].startswith('left out d.png: ') and '3 images' in said[1] and '1 unreadable' in said[1]
    packed = PackedImages(str(tmp_path / 'images.pack'))
    assert [image.shape for image in packed] == [(60, 80, 3), (80, 60, 3), (40, 30, 3)]
    expected = Image.open(root / 'a.png').resize((80, 60), Image.Resampling.BICUBIC)
    assert np.array_equal(packed[0][..., ::-1], np.asarray(expected))


def test_killed_packing_continues_to_the_same_bytes(tmp_path):
    """A run killed by SIGKILL at any point ends, when repeated, with the bytes of a run that was not."""
    root = tmp_path / 'images'
    root.mkdir()
    for number in range(300):
        Image.fromarray(photograph(40, 50 + number % 7, number)).save(root / f'{number}.jpg')
    (root / '7.jpg').write_bytes(b'damaged')
    pack_images(str(root), str(tmp_path / 'whole.pack'), side=32, workers=0)
    out = tmp_path / 'killed.pack'
    command = [sys.executable, str(ROOT / 'tools/prepare.py'), str(root), '--task', 'pretrain', '--side', '32']
    command += ['--workers', '1', '--out', str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        journal = Path(f'{out}.journal')
        while run.poll() is None and not (journal.exists() and journal.read_bytes().count(b'\n') > 64):
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
    assert journal.exists() and not out.exists()
    for cut in (1, 5):  # as if the journal had been cut while it was written
        journal.write_bytes(journal.read_bytes()[:-cut])
    with open(f'{out}.partial', 'r+b') as data:
        data.truncate(data.seek(0, os.SEEK_END) - 1)
    pack_images(str(root), str(out), side=32, workers=0)
    assert out.read_bytes() == (tmp_path / 'whole.pack').read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['images', 'killed.pack', 'whole.pack']


def test_wrong_packed_files_are_refused(folder, tmp_path):
    """A file of another kind, of another version, cut short, with damaged index or pixels: one sentence each."""
    path = tmp_path / 'images.pack'
    pack_images(str(folder), str(path), workers=0)
    content = path.read_bytes()
    for damaged, message in {
        b'{"images": []}': 'not a file of packed images',
        content[:-10]: 'cut short: .* bytes, expected',
        content[: HEADER // 2]: 'cut short',
        PREFIX.pack(b'CNV2PACK', 9) + content[PREFIX.size :]: 'version 9 of packed images, this .* reads version 1',
        content[:-1] + b'?': 'index of .* is damaged',
    }.items():
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            build(path, OURS)
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(ValueError, match='1 images of .* are damaged, such as'):
        pack_images(str(folder), str(path))
    path.write_bytes(content)
    with pytest.raises(ValueError, match='holds BGR images of 8 bits, but .* begins with LoadMultiChannelImage'):
        build(path, [dict(type='LoadMultiChannelImage', channels=3), *OURS[1:]])


def test_exif_is_read_in_both_byte_orders():
    """The orientation is found in little- and big-endian blocks; a damaged block is not taken for an upright image."""
    for order in ('<', '>'):
        exif = Image.Exif()
        exif.endian = order
        exif[0x010F], exif[0x0112] = 'maker', 6
        content = io.BytesIO()
        Image.fromarray(photograph(20, 30)).save(content, 'jpeg', exif=exif)
        header = jpeg.read_header(content.getvalue())
        assert header == (20, 30, 3, 6)
        assert jpeg.JPEGImage(content.getvalue(), header, '').shape == (30, 20, 3)
    assert jpeg.read_orientation(b'nonsense') == 0
    assert jpeg.read_header(b'\x89PNG') is None and jpeg.read_header(b'\xff\xd8\xff') is None
