"""Embeddings are the model's, whatever the file, and neighbours and places are those of a plain computation."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from mmconvnextv2 import create_backbone
from mmconvnextv2.commands.extract import extract, nearest, parse_args, place

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for number, size in enumerate([(80, 100), (70, 70), (120, 75), (64, 90), (90, 64)]):
        image = Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))
        image.save(folder / f'{number}.png')
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights of Atto whose GRN is not the identity."""
    model = create_backbone('atto', out_norm=False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp('weights') / 'atto.pth'
    torch.save(model.state_dict(), path)
    return str(path)


def run(weights, *arguments):
    extract(parse_args([weights, *map(str, arguments), '--size', '64', '--device', 'cpu']))


def expected_maps(weights, files, stage):
    """Maps by a backbone of its own and torchvision's functions."""
    model = create_backbone('atto', weights, out_indices=(stage,), out_norm=False)
    maps = []
    for file in files:
        pixels = center_crop(resize(Image.open(file), round(64 * 256 / 224), interpolation=3), [64, 64])
        with torch.no_grad():
            maps.append(
                model(((pil_to_tensor(pixels).float().permute(1, 2, 0) - MEAN) / STD).permute(2, 0, 1)[None])[0]
            )
    return torch.cat(maps)


@pytest.mark.parametrize('stage, options', [(3, []), (1, ['--stage', 1])])
def test_embeddings_are_the_models(photos, weights, tmp_path, stage, options):
    """Vectors are the means of the stage's maps, in the order of the listed files, for any batch size; so are maps."""
    files = sorted(photos.iterdir())
    expected = expected_maps(weights, files, stage)
    for batch in (2, 5):
        run(weights, photos, '--out', tmp_path / 'a.npy', '--batch-size', batch, *options)
        found = np.load(tmp_path / 'a.npy')
        np.testing.assert_allclose(found, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert (tmp_path / 'a.npy.txt').read_text().splitlines() == [str(file) for file in files]
    run(weights, photos, '--out', tmp_path / 'b.npy', '--dense', *options)
    np.testing.assert_allclose(np.load(tmp_path / 'b.npy'), expected, rtol=1e-4, atol=1e-5)


def test_map_of_one_image_as_tif(photos, weights, tmp_path):
    """A .tif has a page of float32 per channel, with the bits of the .npy."""
    for name in ('a.tif', 'a.npy'):
        run(weights, photos / '2.png', '--out', tmp_path / name, '--dense', '--stage', 2)
    read, pages = cv2.imreadmulti(str(tmp_path / 'a.tif'), flags=cv2.IMREAD_UNCHANGED)
    assert read and np.array_equal(np.stack(pages), np.load(tmp_path / 'a.npy')[0])


def test_table(photos, weights, tmp_path):
    """A .parquet file has a row per image, with its name and the vector of the .npy."""
    parquet = pytest.importorskip('pyarrow.parquet', reason='needs pyarrow: make export')
    for name in ('a.parquet', 'a.npy'):
        run(weights, photos, '--out', tmp_path / name, '--batch-size', 2)
    table = parquet.read_table(tmp_path / 'a.parquet').to_pydict()
    assert table['file'] == [str(file) for file in sorted(photos.iterdir())]
    np.testing.assert_array_equal(np.array(table['features'], np.float32), np.load(tmp_path / 'a.npy'))


def test_neighbours_and_places():
    """Neighbours are the largest cosines with others; places keep the distances of points in a plane."""
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    assert np.array_equal(nearest(features, 3), np.argsort(-cosine, axis=1)[:, :3])
    flat = random.normal(size=(40, 2)) @ np.linalg.qr(random.normal(size=(6, 6)))[0][:2] + 5
    places = place(flat.astype(np.float32))
    distances = [np.linalg.norm(one[:, None] - one[None], axis=2) for one in (flat, places)]
    np.testing.assert_allclose(*distances, atol=1e-5)
    assert places[:, 0].var() > places[:, 1].var()


def test_pictures(photos, weights, tmp_path):
    """The map and the neighbours are written; an image whose copy is there has it as its nearest."""
    for name in ('copy.png', 'first.png'):
        Image.open(photos / '0.png').save(tmp_path / name)
    run(weights, photos, tmp_path / 'copy.png', tmp_path / 'first.png', '--out', tmp_path / 'a.npy', '--map',
        tmp_path / 'map.png', '--neighbours', tmp_path / 'near.png')  # fmt: skip
    assert nearest(np.load(tmp_path / 'a.npy'), 1)[-1] in (0, 5)
    for name in ('map.png', 'near.png'):
        pixels = np.asarray(Image.open(tmp_path / name).convert('RGB'))
        assert min(pixels.shape[:2]) > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_mistakes_are_found_before_the_work(photos, weights, tmp_path):
    """Files that cannot hold the result, missing folders and too few images are refused; an image that cannot be read
    leaves no file behind."""
    for arguments, message in (
        ((photos, '--out', 'a.csv'), 'ends in .npy, .parquet, .tif'),
        ((photos, '--out', 'a.tif', '--dense'), 'give one image, not 5'),
        ((photos / '0.png', '--out', 'a.tif'), 'add --dense'),
        ((photos, '--out', 'a.parquet', '--dense'), 'write maps as .npy'),
        ((photos, '--out', tmp_path / 'no' / 'a.npy'), 'the folder does not exist'),
        ((photos / '0.png', '--out', 'a.npy', '--map', 'm.png'), '1 images have no map'),
    ):
        with pytest.raises(ValueError, match=message):
            run(weights, *arguments)
    (tmp_path / 'bad.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='bad.png cannot be read'):
        run(weights, photos, tmp_path / 'bad.png', '--out', tmp_path / 'a.npy', '--batch-size', 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.png']
