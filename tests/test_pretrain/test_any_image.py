"""FCMAE reads any image: any format, size in multiples of 32, number of channels and depth."""

import struct
import textwrap
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.structures import DataSample
from PIL import Image
from small_models import NARROW, make_fcmae
from sparse_reference import loss_reference, run_block
from torch import nn

from mmconvnextv2.pretrain import (
    DeterministicSampler,
    FCMAEDataPreprocessor,
    FCMAEDecoder,
    LoadMultiChannelImage,
    UnlabelledImages,
)
from mmconvnextv2.pretrain.reconstruction import render_reconstructions

FCMAE_CONFIGS = Path(__file__).parents[2] / 'configs' / 'fcmae'
KEYS = ('img_path', 'visible_cells')


def make_pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def load(path, channels):
    return LoadMultiChannelImage(channels).transform(dict(img_path=str(path)))['img']


def write_tiff(path, pixels):
    """Write 8-bit pixels (H, W, C) of any C as a plain TIFF."""
    height, width, channels = pixels.shape
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, pixels.size),
        (284, 3, 1, 1),
    ]
    table = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *entry) for entry in entries) + bytes(4)
    path.write_bytes(struct.pack('<2sHI', b'II', 42, 8 + pixels.size) + pixels.tobytes() + table)


@pytest.mark.parametrize('height, width', [(32, 64), (64, 32), (96, 160), (224, 32)])
@pytest.mark.parametrize('channels', (1, 4))
def test_loss_of_any_size_is_the_published_one(height, width, channels):
    """On images that are not square the loss is that of a plain loop over masked cells."""
    model, images = make_fcmae(channels), torch.randn(1, channels, height, width, dtype=torch.float64)
    visible = torch.arange(0, height * width // 1024, 2)[None]
    with torch.no_grad():
        decoded = model.neck(model.backbone(images, visible, 'packed'), visible)
        loss = model.loss(images, [DataSample(metainfo=dict(visible_cells=visible[0].numpy()))])['loss']
        expected = loss_reference(model.head, decoded, images, visible.tolist())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('height, width', [(64, 96), (160, 32)])
def test_decoder_is_an_ordinary_convnet(height, width):
    """On maps that are not square the decoder equals a projection and blocks written from the paper over all cells, in
    which masked cells hold the mask token."""
    torch.manual_seed(0)
    decoder = FCMAEDecoder(in_channels=5, channels=8, depth=2).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows, columns = height // 32, width // 32
    features = torch.randn(2, 5, rows, columns, dtype=torch.float64)
    visible = torch.tensor([[0, 3], [1, 4]])
    weights = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    with torch.no_grad():
        decoded = decoder(features, visible)
        maps = nn.functional.conv2d(features, weights['proj.weight'], weights['proj.bias'])
    for image, cells in enumerate(visible.tolist()):
        sites = {(y, x): maps[image, :, y, x] for y in range(rows) for x in range(columns)}
        for y, x in sites:
            if y * columns + x not in cells:
                sites[y, x] = weights['mask_token'].flatten()
        for number in range(2):
            sites = run_block(weights, f'blocks.{number}', sites)
        for (y, x), expected in sites.items():
            torch.testing.assert_close(decoded[image, :, y, x], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('channels', (1, 4, 5))
def test_reconstruction_of_any_channels(channels):
    """Reconstructions of images with any channels keep visible pixels, and a perfect prediction gives the original
    back everywhere."""
    model = make_fcmae(channels)
    images = torch.randn(2, channels, 64, 96, dtype=torch.float64)
    visible, hidden = torch.tensor([[0, 2], [1, 5]]), torch.tensor([[1, 3, 4, 5], [0, 2, 3, 4]])
    shown = model.reconstruct(images, visible)['masked'] != 0
    assert shown.sum() == 2 * 2 * 1024 * channels
    model.head.forward = lambda decoded, cells: model.head.target(images, cells)[0]
    reconstructed = model.reconstruct(images, visible)
    torch.testing.assert_close(reconstructed['pasted'], images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reconstructed['reconstruction'], images * ~shown, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.head.target(images, hidden)[0], model.head(None, hidden))


def test_stored_images_are_read_as_they_are(tmp_path):
    """Grey, colour and alpha of 8 and 16 bits come with their values on the scale 0 to 255, in the order of the file
    except for three channels, which are reversed."""
    for channels in (1, 3, 4):
        pixels = make_pixels(9, 7, channels)
        for ending in ('png', 'tif', *(['webp'] if channels > 1 else ['bmp', 'pgm'])):
            options = dict(lossless=True, exact=True) if ending == 'webp' else {}
            Image.fromarray(pixels.squeeze()).save(tmp_path / f'image.{ending}', **options)
            expected = pixels[..., ::-1] if channels == 3 else pixels
            assert np.array_equal(load(tmp_path / f'image.{ending}', channels), expected), (channels, ending)
    deep = make_pixels(9, 7, 4, dtype=np.uint16)
    for channels in (1, 3, 4):
        order = [2, 1, 0, 3][:channels] if channels > 1 else [0]  # OpenCV writes BGR and BGRA
        expected = (deep[..., :channels] / 257).astype(np.float32)
        expected = expected[..., ::-1] if channels == 3 else expected
        for ending in ('png', 'tif'):
            assert cv2.imwrite(str(tmp_path / f'deep.{ending}'), deep[..., order])
            np.testing.assert_allclose(load(tmp_path / f'deep.{ending}', channels), expected, rtol=1e-6)


@pytest.mark.parametrize('dtype', (np.uint8, np.uint16, np.int16, np.float32))
@pytest.mark.parametrize('channels', (1, 3, 5))
def test_arrays_are_read_with_their_values(tmp_path, dtype, channels):
    """Arrays keep their values, but uint16 comes on the scale 0 to 255; three channels come reversed; two-dimensional
    arrays have one channel."""
    values = (make_pixels(6, 8, channels) * 3.0 - 100).astype(dtype)
    np.save(tmp_path / 'a.NPY', values[..., 0] if channels == 1 else values, allow_pickle=False)
    (tmp_path / 'a.NPY.npy').rename(tmp_path / 'a.NPY')
    expected = values.astype(np.float64) / (257 if dtype == np.uint16 else 1)
    loaded = load(tmp_path / 'a.NPY', channels)
    np.testing.assert_allclose(loaded, expected[..., ::-1] if channels == 3 else expected, rtol=1e-6)
    assert loaded.dtype == np.float32


def test_other_channels_are_refused(tmp_path):
    """A file with other channels than the model's stops the run with its name and what to set; it is not skipped as
    if it were corrupt."""
    Image.fromarray(make_pixels(70, 80, 3)).save(tmp_path / 'colour.png')
    pipeline = [dict(type='LoadMultiChannelImage', channels=4), dict(type='PackInputs')]
    with pytest.raises(ValueError, match=r'colour.png has shape \(70, 80, 3\).*channels=4.*in_channels.*mean and std'):
        UnlabelledImages(str(tmp_path), pipeline)[0]
    np.save(tmp_path / 'deep.npy', np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r'deep.npy has shape \(2, 3, 4, 5\)'):
        load(tmp_path / 'deep.npy', 5)
    with pytest.raises(ValueError, match='channels=0 of LoadMultiChannelImage'):
        LoadMultiChannelImage(0)


def test_damaged_files_count_as_corrupt(tmp_path):
    """Cut, foreign, complex and infinite arrays, and without rasterio a TIFF of five bands, are OSErrors that name the
    file, so that training skips and counts them; nothing is unpickled."""
    np.save(tmp_path / 'whole.npy', make_pixels(70, 80, 5))
    content = (tmp_path / 'whole.npy').read_bytes()
    (tmp_path / 'cut.npy').write_bytes(content[:-9])
    (tmp_path / 'short.npy').write_bytes(content[:20])
    (tmp_path / 'empty.npy').write_bytes(b'')
    (tmp_path / 'empty.png').write_bytes(b'')
    (tmp_path / 'text.tif').write_bytes(b'no image')
    np.save(tmp_path / 'pickle.npy', np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / 'complex.npy', np.zeros((70, 80, 5), dtype=complex))
    np.save(tmp_path / 'nan.npy', np.full((70, 80, 5), np.nan))
    if find_spec('rasterio') is None:
        write_tiff(tmp_path / 'bands.tif', make_pixels(70, 80, 5))
    damaged = sorted(path for path in tmp_path.iterdir() if path.name != 'whole.npy')
    for path in damaged:
        with pytest.raises(OSError, match=path.name):
            load(path, 5)
    pipeline = [dict(type='LoadMultiChannelImage', channels=5), dict(type='PackInputs')]
    dataset = UnlabelledImages(str(tmp_path), pipeline, max_corrupt_share=0.95, extensions=('.npy', '.png', '.tif'))
    assert len(dataset) == len(damaged) + 1
    assert all(dataset[index]['data_samples'].img_path.endswith('whole.npy') for index in range(len(dataset)))
    if find_spec('rasterio') is not None:
        write_tiff(tmp_path / 'bands.tif', make_pixels(70, 80, 5))
        assert np.array_equal(load(tmp_path / 'bands.tif', 5), make_pixels(70, 80, 5))
    write_tiff(tmp_path / 'grey.tif', make_pixels(70, 80, 1))  # the writer itself is right
    assert np.array_equal(load(tmp_path / 'grey.tif', 1), make_pixels(70, 80, 1))


def test_folder_tree_of_mixed_formats(tmp_path):
    """Every image below the folder is found, in any format, case of its ending and depth, grey ones and palettes
    included, and nothing else; each comes with its own pixels."""
    pixels, names = make_pixels(64, 96, 3), []
    for number, ending in enumerate(('jpg', 'JPEG', 'png', 'PNG', 'webp', 'WebP', 'bmp', 'tif', 'TIFF', 'ppm')):
        path = tmp_path / '/'.join('deep' for _ in range(number % 4)) / f'{number}.{ending}'
        path.parent.mkdir(parents=True, exist_ok=True)
        lossy = ending.lower() in ('jpg', 'jpeg')
        image = np.full_like(pixels, 40 + number) if lossy else pixels // (number + 1)
        Image.fromarray(image).save(path, **(dict(lossless=True) if ending.lower() == 'webp' else {}))
        names.append(path)
    Image.fromarray(pixels[..., 0]).save(tmp_path / 'grey.png')
    Image.fromarray(pixels).quantize(16).save(tmp_path / 'palette.png')
    (tmp_path / 'notes.txt').write_text('no image')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='FCMAEMaskGenerator'),
        dict(type='PackInputs', meta_keys=KEYS),
    ]
    dataset = UnlabelledImages(str(tmp_path), pipeline)
    sampler = DeterministicSampler(dataset, seed=0)
    found = {Path(sample['data_samples'].img_path): sample['inputs'] for sample in map(dataset.__getitem__, sampler)}
    assert set(found) == {*names, tmp_path / 'grey.png', tmp_path / 'palette.png'}
    for number, path in enumerate(names):
        read = found[path].numpy().transpose(1, 2, 0)[..., ::-1]
        if path.suffix.lower() in ('.jpg', '.jpeg'):
            assert abs(read.astype(int) - (40 + number)).max() <= 1
        else:
            assert np.array_equal(read, pixels // (number + 1)), path
    assert np.array_equal(found[tmp_path / 'grey.png'].numpy(), np.repeat(pixels[None, ..., 0], 3, axis=0))


def test_preprocessor_is_mmpretrains_on_colour():
    """On colour images normalisation and channel order are those of mmpretrain's preprocessor, bit for bit."""
    options = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    batch = dict(inputs=torch.from_numpy(make_pixels(2, 3, 32, 64)), data_samples=[DataSample(), DataSample()])
    ours, theirs = (kind(**options)(dict(batch))['inputs'] for kind in (FCMAEDataPreprocessor, SelfSupDataPreprocessor))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize('channels, values', [(1, 1), (4, 4), (5, 5), (5, 1), (4, 0)])
@pytest.mark.parametrize('dtype', (np.uint8, np.uint16))
def test_preprocessor_normalises_any_channels(channels, values, dtype):
    """Each channel of images of 8 and 16 bits is shifted and divided by its own numbers, and keeps its place."""
    mean, std = list(range(10, 10 + values)) or None, list(range(3, 3 + values)) or None
    pixels = make_pixels(2, channels, 32, 64, dtype=dtype)
    preprocessor = FCMAEDataPreprocessor(mean, std, to_rgb=True)
    images = preprocessor(default_collate([dict(inputs=torch.from_numpy(one)) for one in pixels]))['inputs']
    shape = (1, -1, 1, 1)
    expected = (pixels - np.reshape(mean or [0], shape)) / np.reshape(std or [1], shape)
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_wrong_number_of_channels_is_refused():
    """Statistics, images and backbone of different numbers of channels are refused with both numbers and the keys to
    set, where broadcasting would go on."""
    for mean, std in (([1, 2], [1]), ([1], None), ([1], [0])):
        with pytest.raises(ValueError, match=r'mean=\[1.*std='):
            FCMAEDataPreprocessor(mean, std)
    with pytest.raises(ValueError, match='3 values in mean and std, but the images have 1 channels'):
        FCMAEDataPreprocessor([1, 2, 3], [1, 1, 1])(dict(inputs=torch.zeros(2, 1, 32, 32)))
    with pytest.raises(ValueError, match='data_preprocessor has 3 values in mean and std, .*in_channels=4'):
        make_fcmae(4, data_preprocessor=dict(mean=[1, 2, 3], std=[1, 1, 1]))
    sample = DataSample(metainfo=dict(visible_cells=np.array([0])))
    model, images = make_fcmae(4), torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match='images have 1 channels, .*in_channels=4'):
        model.loss(images, [sample])
    with pytest.raises(ValueError, match='images have 1 channels, .*in_channels=4'):
        model.reconstruct(images, torch.tensor([[0]]))


def run(cfg, folder, tmp_path, size):
    """Train a narrow copy of a config for one epoch on a folder."""
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'work'),
            'train_cfg.max_epochs': 1,
            'custom_hooks': [],
            'train_dataloader.dataset.data_root': str(folder),
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.dataset.pipeline.1.scale': size,
        }
    )
    cfg.model.backbone.arch, cfg.model.neck.channels = NARROW, 12
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_documented_config_trains_on_five_channels(tmp_path):
    """The config in ``LoadMultiChannelImage``'s documentation trains on arrays of five channels, not square."""
    example = LoadMultiChannelImage.__doc__.split('five channels::')[1].split('Args:')[0]
    text = textwrap.dedent(example).replace("'./", f"'{FCMAE_CONFIGS}/")
    (tmp_path / 'config.py').write_text(text)
    (tmp_path / 'arrays').mkdir()
    for number in range(4):
        np.save(tmp_path / 'arrays' / f'{number}.npy', make_pixels(70, 80, 5) // (number + 1))
    runner = run(Config.fromfile(str(tmp_path / 'config.py')), tmp_path / 'arrays', tmp_path, (96, 64))
    assert runner.model.head.pred.out_features == 5 * 1024
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(runner.cfg.train_dataloader.dataset.pipeline)
    batch = default_collate([pipeline(dict(img_path=str(tmp_path / 'arrays' / '0.npy')))])
    assert tuple(batch['inputs'].shape) == (1, 5, 96, 64)
    drawn, expected = render_reconstructions(runner.model, batch), batch['inputs'][0, 0].round().clamp(0, 255)
    assert np.array_equal(drawn[:, :64, 0], expected.byte().numpy())


def test_grey_images_of_the_shipped_pipeline(tmp_path):
    """With ``color_type='grayscale'`` and one channel the shipped recipe trains on images of any format, at a size
    that is not square, with finite loss; colour images come as their luminance."""
    (tmp_path / 'images').mkdir()
    for number, ending in enumerate(('png', 'jpg', 'bmp', 'webp')):
        shape = (70, 80, 3) if number % 2 else (70, 80)
        Image.fromarray(make_pixels(*shape)).save(tmp_path / 'images' / f'{number}.{ending}')
    cfg = Config.fromfile(str(FCMAE_CONFIGS / 'fcmae_convnextv2-a_1xb64-800e_folder.py'))
    cfg.merge_from_dict(
        {
            'model.backbone.in_channels': 1,
            'model.data_preprocessor.mean': [116.0],
            'model.data_preprocessor.std': [57.0],
            'train_dataloader.dataset.pipeline.0.color_type': 'grayscale',
        }
    )
    runner = run(cfg, tmp_path / 'images', tmp_path, (64, 96))
    assert runner.model.backbone.downsample_layers[0][0].in_channels == 1
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
