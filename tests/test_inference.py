"""The API for programs: what it predicts, what it takes for an image, and that it leaves the process alone."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from PIL import Image

import mmconvnextv2
from mmconvnextv2.engine.inference.images import to_pipeline_image
from mmconvnextv2.utils.config import load_config

sys.path.insert(0, str(Path(__file__).parent / 'test_release_0_1'))
from make_data import draw_data  # noqa: E402

FILES = Path(__file__).parent / 'test_release_0_1' / 'files'
RESULTS = json.loads((FILES / 'results.json').read_text())
CHECKPOINTS = {path.parent.name: path for path in FILES.glob('*/*.pth')}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inference')
    draw_data(folder / 'data')
    return folder / 'data'


@pytest.fixture(scope='module')
def models():
    tasks = ('mask-rcnn', 'upernet', 'classifier')
    return {task: mmconvnextv2.load(str(FILES / task / 'config.py'), str(CHECKPOINTS[task]), 'cpu') for task in tasks}


def where(task):
    return str(FILES / task / 'config.py'), str(CHECKPOINTS[task])


def files_of(data, task):
    """Return the images whose predictions release 0.1 recorded, with these predictions."""
    paths = {'/'.join(path.parts[-2:]): path for path in data.rglob('*.*') if 'annotations' not in path.parts}
    return {str(paths[name]): expected for name, expected in RESULTS[task].items()}


@pytest.mark.parametrize('batch_size', [1, 2])
def test_predictions_are_those_of_the_test_tool(data, models, batch_size):
    """Boxes, label maps and class scores are those that 0.1's tools/test.py recorded for the same checkpoints."""
    for task, model in models.items():
        files = files_of(data, task)
        for found, expected in zip(model.predict(list(files), batch_size=batch_size), files.values()):
            if task == 'mask-rcnn':
                for key, values in zip(('bboxes', 'scores', 'labels'), found[:3]):
                    np.testing.assert_allclose(values, expected[key], rtol=1e-4, atol=1e-3)
                assert found.masks.shape == (len(found.boxes), 64, 64) and found.masks.dtype == bool
            elif task == 'upernet':
                assert np.bincount(found.labels.flatten(), minlength=10).tolist() == expected
            else:
                np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-5)
                assert found.label == np.argmax(expected)


def same(one, other):
    return all(np.array_equal(left, right) for left, right in zip(one, other))


def test_arrays_are_read_as_files(data, models):
    """An array predicts what its file predicts, in either order of colours, with an alpha channel, in 16 bits, and as
    a Pillow image."""
    path, model = next(iter(files_of(data, 'mask-rcnn'))), models['mask-rcnn']
    rgb = np.asarray(Image.open(path).convert('RGB'))
    expected = model.predict(path)
    assert len(expected.boxes) and same(model.predict(rgb), expected)
    assert same(model.predict(rgb[..., ::-1], channel_order='bgr'), expected)
    assert same(model.predict(np.dstack([rgb, rgb[..., 0]])), expected)
    assert same(model.predict(rgb.astype(np.uint16) * 256 + 255), expected)
    assert same(model.predict(Image.open(path)), expected) and same(model.predict(Path(path)), expected)
    assert not same(model.predict(rgb[..., ::-1]), expected)


def test_grey_images(tmp_path, models):
    """A grey array predicts what its file predicts."""
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    model = models['upernet']
    expected = model.predict(str(tmp_path / 'grey.png'))
    for array in (grey, grey[..., None], Image.fromarray(grey)):
        assert same(model.predict(array), expected)


@pytest.mark.parametrize(
    'image, said',
    [
        (np.zeros((4, 4, 3), np.float32), r'expected uint8 or uint16, got float32 \(4, 4, 3\): scale values'),
        (np.zeros((4, 4, 2), np.uint8), r'expected 1, 3 or 4 channels, last in the array, got uint8 \(4, 4, 2\)'),
        (np.zeros((1, 4, 4, 3), np.uint8), r'an array of shape \(1, 4, 4, 3\) is not an image'),
        (np.zeros((0, 4, 3), np.uint8), 'is not an image'),
        (torch.zeros(3, 4, 4), 'an image of type Tensor cannot be read: give a path, a Pillow image or a numpy array'),
    ],
)
def test_what_is_no_image_is_refused(models, image, said):
    """Arrays that a model would take for something else are refused, with their dtype and shape."""
    with pytest.raises(ValueError, match=said):
        models['upernet'].predict(image)


def test_other_mistakes_are_named(tmp_path, models):
    """Files, orders, batch sizes and thresholds that cannot be are refused by name."""
    model, image = models['upernet'], np.zeros((8, 8, 3), np.uint8)
    (tmp_path / 'text.png').write_text('no image')
    for given, said in (
        ('nowhere.png', 'nowhere.png does not exist'),
        (tmp_path / 'text.png', 'text.png cannot be read'),
    ):
        with pytest.raises(ValueError, match=said):
            model.predict(given)
    for options, said in (
        (dict(channel_order='grb'), "channel_order='grb' is unknown"),
        (dict(batch_size=0), 'batch_size=0: expected'),
        (dict(score_threshold=2), 'score_threshold=2: expected 0 to 1'),
    ):
        with pytest.raises(ValueError, match=said):
            model.predict(image, **options)
    with pytest.raises(ValueError, match='is of another model'):
        mmconvnextv2.load(str(FILES / 'upernet' / 'config.py'), str(CHECKPOINTS['mask-rcnn']), 'cpu')


def test_other_channel_counts():
    """A model of five channels takes arrays of five, in any number dtype, and no other; one of one channel takes the
    luma of a colour image."""
    bands = np.random.default_rng(0).normal(size=(4, 4, 5))
    assert to_pipeline_image(bands, 5) is bands
    with pytest.raises(ValueError, match=r'the model reads 5 channels: expected numbers \(H, W, 5\), got uint8'):
        to_pipeline_image(np.zeros((4, 4, 3), np.uint8), 5)
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    expected = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(to_pipeline_image(rgb, 1) - expected).max() <= 1


def test_threshold_and_order(data, models):
    """Detections come surest first, and none below the threshold."""
    model, path = models['mask-rcnn'], next(iter(files_of(data, 'mask-rcnn')))
    every = model.predict(path)
    threshold = float(np.median(every.scores))
    kept = model.predict(path, score_threshold=threshold)
    assert (np.diff(every.scores) <= 0).all() and 0 < len(kept.scores) < len(every.scores)
    assert np.array_equal(kept.scores, every.scores[every.scores >= np.float32(threshold)])


def test_threads_share_a_model(data, models):
    """Eight threads at once get what one gets alone."""
    model, files = models['upernet'], list(files_of(data, 'upernet')) * 4
    expected, found = [model.predict(path) for path in files], {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: model.predict(files[number])}))
        for number in range(len(files))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[number], expected[number]) for number in range(len(files)))


def test_nothing_is_printed_and_nothing_is_widened(data, tmp_path):
    """In a fresh process, loading and predicting prints nothing, keeps torch's list of trusted types and MMEngine's
    readers of checkpoints, and leaves no default scope behind."""
    config = tmp_path / 'config.py'
    config.write_text((FILES / 'upernet' / 'config.py').read_text().replace('datasets.labels', 'datasets.segmentation'))
    code = f"""
import torch, mmconvnextv2
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
before = torch.serialization.get_safe_globals(), dict(CheckpointLoader._schemes)
model = mmconvnextv2.load({str(config)!r}, {str(CHECKPOINTS['upernet'])!r}, 'cpu')
model.predict({next(iter(files_of(data, 'upernet')))!r})
assert (torch.serialization.get_safe_globals(), dict(CheckpointLoader._schemes)) == before
assert DefaultScope.get_current_instance() is None
assert len(model.classes) == 10 and model.device.type == 'cpu'
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')


def test_readers_are_those_of_mmengine():
    """Importing the package registers no reader of checkpoints."""
    assert '' in CheckpointLoader._schemes


def test_backbones_outside_openmmlab(tmp_path, capfd):
    """create_backbone loads timm's weights, and its maps are those that timm computes; it prints nothing."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    theirs = timm.create_model('convnextv2_atto', features_only=True).eval()
    for name, parameter in theirs.named_parameters():
        if 'grn' in name:
            torch.nn.init.normal_(parameter)
    weights = timm.create_model('convnextv2_atto', num_classes=0).state_dict()
    own = {name.replace('stages_', 'stages.').replace('stem_', 'stem.'): w for name, w in theirs.state_dict().items()}
    assert not set(own) - set(weights)
    torch.save({**weights, **own}, tmp_path / 'timm.pth')
    ours = mmconvnextv2.create_backbone('atto', weights=str(tmp_path / 'timm.pth'), out_norm=False)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        for found, expected in zip(ours(images), theirs(images)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not ours.training and capfd.readouterr() == ('', '')
    assert mmconvnextv2.create_backbone('atto', in_channels=5)(torch.zeros(1, 5, 32, 32))[3].shape == (1, 320, 1, 1)


@pytest.mark.parametrize('amp', ['bfloat16', 'float16'])
def test_half_precision(data, models, amp):
    """``amp`` predicts what the model predicts under autocast, also inside a disabled one, and leaves autocast off."""
    path = next(iter(files_of(data, 'mask-rcnn')))
    model = mmconvnextv2.load(*where('mask-rcnn'), 'cpu', amp=amp)
    plain, seen = models['mask-rcnn'], []
    model.module.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))
    with torch.autocast('cpu', dtype=getattr(torch, amp)):
        expected = plain.predict(path)
    with torch.autocast('cpu', enabled=False):  # as in mmengine's test loop
        assert same(model.predict(path), expected) and not torch.is_autocast_enabled('cpu')
    assert not same(expected, plain.predict(path)) and seen == [getattr(torch, amp)]
    with pytest.raises(RuntimeError, match='nothing'):
        model.module(None, mode='nothing')
    assert not torch.is_autocast_enabled('cpu')


def test_batch_size_of_a_model(data):
    """``load(batch_size=...)`` is the number of images that predict passes at once, unless it is given another."""
    model, seen = mmconvnextv2.load(*where('upernet'), 'cpu', batch_size=2), []
    model.module.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = [next(iter(files_of(data, 'upernet')))] * 3
    model.predict(images)
    model.predict(images, batch_size=3)
    assert seen == [2, 1, 3]


def test_speed_that_cannot_be(monkeypatch, tmp_path):
    """Unknown dtypes, batch sizes, and a machine without a compiler are refused when the model is loaded."""
    for options, said in ((dict(amp='half'), "amp='half' is unknown"), (dict(batch_size=0), 'batch_size=0: expected')):
        with pytest.raises(ValueError, match=said):
            mmconvnextv2.load(*where('upernet'), 'cpu', **options)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='compile: g.. was not found, which torch.compile needs for a CPU'):
        mmconvnextv2.load(*where('upernet'), 'cpu', compile=True)


@pytest.mark.slow
def test_compiled_backbone(data, models):
    """A compiled backbone predicts the same, for two sizes."""
    model = mmconvnextv2.load(*where('upernet'), 'cpu', compile=True)
    for side in (64, 96):
        image = np.random.default_rng(0).integers(0, 256, (64, side, 3), np.uint8)
        assert (model.predict(image).labels == models['upernet'].predict(image).labels).mean() > 0.99


def test_one_config_builds_several_models():
    """Builders that change the config that they are given, as DINO's does, get one of their own."""
    from mmconvnextv2.engine.inference.model import _build

    cfg = load_config('configs/dino/dino_convnextv2-t_4scale-12e_coco.py')
    before = cfg.model.to_dict()
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        models = [_build(cfg) for _ in range(2)]
    assert cfg.model.to_dict() == before and type(models[0]) is type(models[1])
