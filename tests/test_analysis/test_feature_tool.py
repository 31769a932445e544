"""tools/analyze_features.py measures what it says, on images and models of any source, and answers mistakes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import NARROW
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.analysis.feature_hooks import find_blocks, watch_hidden, watch_outputs
from mmconvnextv2.analysis.feature_plots import mosaic
from mmconvnextv2.analysis.measures import cosine_distance
from mmconvnextv2.analysis.models import load_subject
from mmconvnextv2.checkpoint import from_canonical
from mmconvnextv2.commands.features import parse_args
from mmconvnextv2.datasets.labelled_folder import LabelledImages, choose_images, choose_labelled
from mmconvnextv2.utils.config import IMAGENET

ROOT = Path(__file__).parents[2]


def make_model(seed=0, arch=NARROW, **kwargs):
    torch.manual_seed(seed)
    model = ConvNeXtV2(arch, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with six images of two classes and weights of two models, the second one without GRN."""
    folder, draw = tmp_path_factory.mktemp('analysis'), np.random.default_rng(0)
    for number in range(6):
        path = folder / 'pictures' / ('a', 'b')[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (70 + number, 90, 3), dtype=np.uint8)).save(path)
    torch.save(make_model().state_dict(), folder / 'v2.pth')
    torch.save(make_model(1, response_norm=None, layer_scale_init_value=1.0).state_dict(), folder / 'v1.pth')
    return folder


def run(place, *given):
    args = parse_args([str(one) for one in given] + ['--size', '64', '--out', str(place / 'out'), '--batch-size', '4'])
    args.run(args)
    return place / 'out'


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def normalised(folder, size=64):
    """The images of a folder as the models get them, one by one, by Pillow and numpy."""
    images = []
    for path in sorted(folder.rglob('*.png')):
        picture = Image.open(path)
        scale = round(size * 256 / 224) / min(picture.size)
        width, height = (int(side * scale) for side in picture.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        images.append((np.asarray(picture, dtype=np.float64) - IMAGENET.mean) / IMAGENET.std)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


@torch.no_grad()
def watched(watch, model, images):
    seen = {}
    with watch(model, find_blocks(model), lambda index, features: seen.update({index: features})):
        model(images)
    return [seen[index] for index in sorted(seen)]


def test_distance_of_two_models(place):
    """The table holds the mean and deviation over images of the distance of every block at its depth, whatever the
    batches; a later run keeps earlier models."""
    out = run(place, 'distance', place / 'pictures', '--model', 'with GRN', place / 'v2.pth')
    out = run(place, 'distance', place / 'pictures', '--model', 'none', place / 'v1.pth', '--add', out / 'distance.csv')
    rows, images = read(out / 'distance.csv'), normalised(place / 'pictures')
    models = [make_model(), make_model(1, response_norm=None, layer_scale_init_value=1.0)]
    assert [row['model'] for row in rows] == ['with GRN'] * 5 + ['none'] * 5
    for model, own in zip(models, (rows[:5], rows[5:])):
        distances = [cosine_distance(features) for features in watched(watch_hidden, model, images)]
        for row, expected in zip(own, distances, strict=True):
            assert float(row['distance']) == pytest.approx(expected.mean().item(), abs=1e-5)
            assert float(row['deviation']) == pytest.approx(expected.std(correction=0).item(), abs=1e-5)
    assert [row['block'] for row in rows[:5]] == [f'stages.{one}' for one in ('0.0', '1.0', '2.0', '2.1', '3.0')]
    assert [float(row['depth']) for row in rows[:5]] == [0, 0.25, 0.5, 0.75, 1]
    assert [int(row['channels']) for row in rows[:5]] == [16, 24, 32, 32, 40] and rows[0]['pictures'] == '6'
    assert Image.open(out / 'distance.png').size == (1050, 630)


def test_selectivity_of_a_labelled_folder(place):
    """The table holds the index of every channel of each block's output, from class means by a loop."""
    out = run(place, 'selectivity', place / 'pictures', '--model', 'm', place / 'v2.pth')
    rows, model = read(out / 'selectivity.csv'), make_model()
    by_class = [watched(watch_outputs, model, normalised(place / 'pictures' / name)) for name in ('a', 'b')]
    expected = []
    for one, other in zip(*by_class):
        for channel in range(one.shape[2]):
            low, high = sorted(features[..., channel].clamp(min=0).mean().item() for features in (one, other))
            expected.append((high - low) / (high + low) if high else 0.0)
    assert [float(row['selectivity']) for row in rows] == pytest.approx(expected, abs=1e-3)
    assert len(rows) == 4 + 6 + 8 + 8 + 10 and (out / 'selectivity.png').stat().st_size > 10000


def test_maps_count_channels(place):
    """The table counts channels that are made dead and saturated in chosen blocks, and the figure is plotted."""
    model = make_model()
    with torch.no_grad():
        hidden = model.stages[2][1].grn
        model.stages[2][1].pointwise_conv1.weight[:7] = 0
        model.stages[2][1].pointwise_conv1.bias[:5] = 0  # GELU(0) = 0: dead
        model.stages[2][1].pointwise_conv1.bias[5:7] = 9  # the same everywhere: saturated
        hidden.gamma[:7], hidden.beta[:7] = 0.1, 0
    torch.save(model.state_dict(), place / 'collapsed.pth')
    out = run(
        place,
        'maps',
        place / 'pictures',
        '--num-images',
        2,
        '--blocks',
        3,
        'stages.0.0',
        '--model',
        'a model',
        place / 'collapsed.pth',
        '--tolerance',
        '1e-6',
    )
    rows = read(out / 'maps.csv')
    assert [row['block'] for row in rows] == ['stages.0.0'] * 2 + ['stages.2.1'] * 2
    assert [(int(row['dead']), int(row['saturated'])) for row in rows] == [(0, 0)] * 2 + [(5, 2)] * 2
    assert Image.open(out / 'maps_a_model.png').size[0] == 1350


def test_mosaic_has_one_scale():
    """Maps keep their order and share a scale, so that a flat one is flat; a gap of NaN is between them."""
    maps = np.stack([np.full((2, 2), 0.0), np.full((2, 2), 4.0), np.array([[0.0, 1.0], [2.0, 4.0]])])
    tiles, gap = mosaic(maps), np.nan
    expected = [
        [gap] * 7,
        [gap, 0, 0, gap, 1, 1, gap],
        [gap, 0, 0, gap, 1, 1, gap],
        [gap] * 7,
        [gap, 0, 0.25, gap, gap, gap, gap],
        [gap, 0.5, 1, gap, gap, gap, gap],
        [gap] * 7,
    ]
    np.testing.assert_allclose(tiles, expected)


def test_sources_are_the_same_model(place):
    """The same weights as a file, through an architecture, a config, timm's model and mmpretrain's by name give the
    same features."""
    weights = make_model(arch='atto').state_dict()
    torch.save(weights, place / 'atto.pth')
    inside = {key: value for key, value in weights.items() if not key.startswith('norm')}
    torch.save(from_canonical(inside, 'timm-conv'), place / 'timm.pth')
    config = place / 'config.py'
    config.write_text("model = dict(type='Any', backbone=dict(type='ConvNeXtV2', arch='atto', out_indices=(3, )))\n")
    images = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)
    sources = [
        (place / 'atto.pth',),
        ('atto', place / 'atto.pth'),
        (config, place / 'timm.pth'),
        ('timm:convnextv2_atto', place / 'timm.pth'),
        ('timm:convnextv2_atto', place / 'atto.pth'),
        ('mmpretrain:convnext-v2-atto_fcmae-pre_3rdparty_in1k', place / 'atto.pth'),
        ('mmpretrain:convnext-v2-atto_fcmae-pre_3rdparty_in1k', place / 'timm.pth'),
    ]
    subjects = [load_subject('any', *map(str, source)) for source in sources]
    found = [watched(watch_hidden, subject.model, (images - 114.0) / 57) for subject in subjects]
    for features in found[1:]:
        for one, other in zip(features, found[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_normalisation_is_the_configs(place):
    """Images are normalised with the mean and deviation of the config's preprocessor, else with ImageNet's."""
    config = place / 'own.py'
    config.write_text(
        'model = dict(data_preprocessor=dict(mean=[1., 2., 3.], std=[4., 5., 6.]), backbone=dict('
        f"type='ConvNeXtV2', arch={NARROW}))\n"
    )
    own, usual = load_subject('any', str(config), 'random'), load_subject('any', str(place / 'v2.pth'))
    seen = []
    for subject in (own, usual):
        subject.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, :, 0, 0].tolist()))
        subject.forward(torch.full((1, 3, 32, 32), 10, dtype=torch.uint8))
    assert seen[0] == pytest.approx([9 / 4, 8 / 5, 7 / 6])
    assert seen[1] == pytest.approx([(10 - mean) / std for mean, std in zip(IMAGENET.mean, IMAGENET.std)])


def test_other_norms_need_their_config(place):
    """Weights of another response norm come back through their config; a bare file of them is refused."""
    model = make_model(response_norm=dict(type='SE', ratio=4))
    torch.save(model.state_dict(), place / 'se.pth')
    config = place / 'se.py'
    config.write_text(
        f"model = dict(backbone=dict(type='ConvNeXtV2', arch={NARROW}, response_norm=dict(type='SE', ratio=4)))\n"
    )
    loaded = load_subject('any', str(config), str(place / 'se.pth')).model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match='another response norm than GRN .*; give the config'):
        load_subject('any', str(place / 'se.pth'))


def test_choice_of_images(place):
    """Images are sampled by the seed, without duplicates, in order of name, and per class."""
    every = choose_images([str(place / 'pictures')], 10)
    assert len(every) == 6 and choose_images([str(place / 'pictures')], 6) == every
    drawn = choose_images([str(place / 'pictures')], 3, seed=1)
    assert drawn == choose_images([str(place / 'pictures')], 3, seed=1) == sorted(set(drawn)) and len(drawn) == 3
    files, labels, classes = choose_labelled(str(place / 'pictures'), per_class=2)
    assert classes == ['a', 'b'] and labels == [0, 0, 1, 1]
    assert [Path(file).parent.name for file in files] == ['a', 'a', 'b', 'b']


def test_mistakes_end_in_one_line(place, capsys):
    """The tool itself says in one line what is wrong; arguments are checked at once, and the help shows examples."""
    tool = str(ROOT / 'tools' / 'analyze_features.py')
    result = subprocess.run(
        [sys.executable, tool, 'maps', str(place / 'nowhere'), '--model', 'a', 'atto', 'random'],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and result.stderr == f'error: {place}/nowhere does not exist\n'
    with pytest.raises(SystemExit):
        parse_args(['distance', 'pictures', '--model', 'a', 'atto', 'random', '--device', 'gpu'])
    assert 'argument --device: gpu cannot be used' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_args(['maps', '--help'])
    assert 'python tools/analyze_features.py maps dog.jpg cat.jpg --model' in capsys.readouterr().out


@pytest.mark.parametrize(
    'given, message',
    [
        (['--model', 'a'], r'--model a: expected LABEL SOURCE \[WEIGHTS\]'),
        (['--model', 'a', 'atto'], "atto has no weights: add a checkpoint, or 'random'"),
        (['--model', 'a', 'attto', 'random'], "SOURCE='attto' is not an architecture .*, config or library"),
        (
            ['--model', 'a', 'timm:convnextv2_ato'],
            "timm has no model 'convnextv2_ato'; similar names are .*convnextv2_atto",
        ),
        (['--model', 'a', 'atto', 'random', '--model', 'a', 'femto', 'random'], r"labels \['a'\] are repeated"),
        (
            ['--model', 'a', 'timm:convnext_atto', 'WEIGHTS'],
            'does not fit ConvNeXt: .* are missing or of a wrong shape',
        ),
        (['--model', 'a', 'WEIGHTS', '--blocks', '5', '1'], '--blocks 5: expected blocks 0 to 4'),
        (['--model', 'a', 'WEIGHTS', '--blocks', 'stages.9.9'], '--blocks stages.9.9'),
        (['--model', 'a', 'WEIGHTS', '--tolerance', '1'], r'--tolerance 1.0: expected a number in \(0, 1\)'),
        (['--model', 'a', 'WEIGHTS', '--size', '100'], '--size 100: expected a positive multiple of 32'),
        (['--model', 'a', 'timm:vit_tiny_patch16_224', 'random', '--size', '64'], 'a refuses images of 64x64 pixels'),
    ],
)
def test_mistakes_are_named(place, given, message):
    """Each mistake is refused with what was given and what may be."""
    given = [str(place / 'v2.pth') if one == 'WEIGHTS' else one for one in given]
    args = parse_args(['maps', str(place / 'pictures'), '--size', '64', '--out', str(place / 'never'), *given])
    with pytest.raises(ValueError, match=message):
        args.run(args)
    assert not (place / 'never').exists()


def test_broken_files_are_named(place, tmp_path):
    """A file that is not an image, a folder without classes and a foreign table are refused by name."""
    (tmp_path / 'broken.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='broken.png cannot be read as an image'):
        LabelledImages([str(tmp_path / 'broken.png')])[0]
    with pytest.raises(ValueError, match='contains 0 folders: expected one folder per class'):
        choose_labelled(str(tmp_path))
    table = tmp_path / 'table.csv'
    table.write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='table.csv is not a distance.csv: expected the columns model, block'):
        run(place, 'distance', place / 'pictures', '--model', 'a', place / 'v2.pth', '--add', table)
