"""Detectors and segmentors that ``tools/export.py`` writes whole predict, in onnxruntime, what the trained model does.

The sweep over all kinds is ``nox -s exports``; here one narrow model represents a family.
"""

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from whole_models import CLASSES, LEAVES, draw_photos, to_input, write_model

import mmconvnextv2
from mmconvnextv2.commands.export import parse_args
from mmconvnextv2.engine.inference import Detections
from mmconvnextv2.export import graphs, suppression
from mmconvnextv2.export.detectors import DetectorGraph
from mmconvnextv2.export.runtimes import quantise

needs_onnx = pytest.mark.skipif(
    not find_spec('onnxruntime') or not find_spec('onnxscript'),
    reason='needs onnx, onnxruntime and onnxscript: make export',
)
KINDS = list(LEAVES) if os.environ.get('MMCONVNEXTV2_EXPORTS') else ['mask', 'atss', 'dino']
SIZES = ((2, 128, 160), (1, 100, 160))  # batch, height and width; neither is resized, and the second is padded


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Return a function: the file of a kind, its session, and the model that wrote it; each is exported once."""
    import onnxruntime

    folder, made, models = tmp_path_factory.mktemp('whole'), {}, {}

    def write(kind, *options):
        key = (kind, *options)
        if key not in made:
            if kind not in models:
                config, checkpoint, cfg = write_model(kind, folder)
                models[kind] = config, checkpoint, mmconvnextv2.load(cfg, checkpoint, 'cpu')
            config, checkpoint, model = models[kind]
            path = str(folder / f'{kind}{len(made)}.onnx')
            args = parse_args([config, checkpoint, '--to', 'onnx', '--out', path, '--size', '128', '160', *options])
            args.run(args)
            session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
            made[key] = path, session, model
        return made[key]

    return write


def paste(mask, box, height, width):
    """Sample a grid of probabilities (P, P) at every pixel of an image, in numpy, and compare with one half."""
    size = len(mask)
    padded = np.pad(mask, 1)
    places = []
    for low, high, length in ((box[0], box[2], width), (box[1], box[3], height)):
        at = np.clip((np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * size + 0.5, 0, size + 1)
        first = np.minimum(at.astype(int), size)
        places.append((first, at - first))
    (x, right), (y, down) = places
    above, below = (padded[rows][:, x] * (1 - right) + padded[rows][:, x + 1] * right for rows in (y, y + 1))
    return above * (1 - down[:, None]) + below * down[:, None] >= 0.5


def detections(outputs, image, height, width):
    """Return the detections of one image of a batch."""
    boxes, scores, labels, *masks = (output[image] for output in outputs)
    found = scores > 0
    assert (labels[~found] == -1).all() and (scores[~found] == 0).all()
    if masks:
        masks = [np.stack([paste(*each, height, width) for each in zip(masks[0][found], boxes[found])])]
    return Detections(boxes[found], scores[found], labels[found], masks[0] if masks else None)


def assert_same(found, expected, pixels, scores):
    """Most detections are the same, one by one; some may go another way where scores are almost equal."""
    distances = np.abs(expected.boxes[:, None] - found.boxes).max(-1) / pixels
    distances = np.maximum(distances, np.abs(expected.scores[:, None] - found.scores) / scores)
    distances[expected.labels[:, None] != found.labels] = np.inf
    partners, agrees = distances.argmin(1), distances.min(1) <= 1
    assert len(expected.boxes) >= 10 and agrees.mean() >= 0.9 and abs(len(found.boxes) - len(expected.boxes)) <= 2
    if expected.masks is not None:
        assert expected.masks.any() and (found.masks[partners] != expected.masks)[agrees].mean() < 0.01


@needs_onnx
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.slow
def test_file_predicts_what_the_model_predicts(written, kind):
    """Boxes, scores, labels and masks, or label maps, equal ``load(...).predict``'s, for a batch and another size."""
    path, session, model = written(kind)
    facts = session.get_modelmeta().custom_metadata_map
    resize = json.loads(facts['resize'])
    for batch, height, width in SIZES if kind != 'dino' else ((1, 128, 160),):
        photos = draw_photos(batch, height, width)
        images = to_input(photos)
        if 'pad' in resize:
            missing = resize['pad'][1] - height, resize['pad'][0] - width
            value = resize['pad_value']['img'][0]
            images = np.pad(images, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), constant_values=value)
        outputs = session.run(None, dict(images=images))
        for image, expected in enumerate(model.predict(list(photos))):
            if not isinstance(expected, Detections):
                assert (outputs[0][image].argmax(0) == expected.labels).mean() > 0.999
                assert len(np.unique(expected.labels)) > 1
                continue
            assert_same(detections(outputs, image, height, width), expected, pixels=0.05, scores=1e-3)
    assert json.loads(facts['classes']) == list(CLASSES) and resize['keep_ratio']
    assert facts['size'] == ('fixed: 1 x 128 x 160 pixels' if kind == 'dino' else 'any batch, height and width')


@needs_onnx
@pytest.mark.slow
def test_half_precision_at_1024_pixels(written):
    """With hidden features of 1e3 at 1024 pixels, the float16 file finds what the float32 file finds."""
    _, exact, _ = written('mask')
    _, half, _ = written('mask', '--half')
    images = dict(images=to_input(draw_photos(1, 1024, 1024)))
    expected, found = (session.run(None, images) for session in (exact, half))
    assert half.get_modelmeta().custom_metadata_map['precision'] == 'float16'
    assert all(np.isfinite(output).all() for output in found) and (expected[1] > 0).sum() >= 10
    assert shared(expected, found) >= 0.5  # random weights have many boxes of almost equal scores


FLOAT32 = ('ReduceL2', 'ReduceMean', 'LayerNormalization', 'Exp', 'Softmax', 'RoiAlign', 'NonMaxSuppression', 'TopK')


def types_read(path):
    """Return the operators of an ONNX file and the types of their first inputs, as far as these are known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    return {(node.op_type, types[node.input[0]]) for node in graph.node if node.input and node.input[0] in types}


@needs_onnx
@pytest.mark.slow
def test_half_precision_where_it_suffices(written):
    """Norms, GRN's sums, box decoding, RoIAlign and NMS of a float16 file read float32, convolutions float16: runtimes
    for CPUs compute both in float32, so that values alone do not show it."""
    from onnx import TensorProto

    read = types_read(written('mask', '--half')[0])
    assert ('Conv', TensorProto.FLOAT16) in read and ('MatMul', TensorProto.FLOAT16) in read
    found = {kind: {dtype for op, dtype in read if op == kind} for kind in FLOAT32}
    assert all(types <= {TensorProto.FLOAT} for types in found.values()), found
    assert found['ReduceL2'] and found['LayerNormalization'] and found['RoiAlign']


def test_sums_in_float16_overflow(tmp_path, monkeypatch):
    """With hidden features of 1e3 at 1024 pixels, a float16 graph is right, and wrong once GRN sums in float16."""
    from mmconvnextv2.models import grn

    _, checkpoint, cfg = write_model('mask', tmp_path)
    exact, half = (graphs.read_graph(cfg, checkpoint, 'backbone', graphs.GraphOptions(each)).graph for each in (0, 1))
    images = torch.from_numpy(to_input(draw_photos(1, 1024, 1024)))
    with torch.no_grad():
        expected, found = exact(images), half(images)
        monkeypatch.setattr(grn, 'statistics_dtype', lambda dtype: dtype)
        wrong = half(images)
    for right, close, off in zip(expected, found, wrong):
        assert (close - right).abs().max() <= 3e-2 * right.abs().max()
        assert not (off - right).abs().max() <= 0.3 * right.abs().max()


def shared(expected, found):
    """Return the share of detections that are found within 3 pixels and 0.02 of the score."""
    boxes = np.abs(expected[0][0][:, None] - found[0][0]).max(-1) < 3
    scores = np.abs(expected[1][0][:, None] - found[1][0]) < 0.02
    same = boxes & scores & (expected[2][0][:, None] == found[2][0])
    return same.any(1)[expected[1][0] > 0].mean()


@needs_onnx
def test_int8_weights_are_rounded_weights(written, tmp_path):
    """``quantise`` rounds the weights of linear layers to int8 steps per output channel, which makes the file smaller;
    with random weights, detections of such a file say nothing. ``--int8`` runs the same function."""
    import onnx
    from onnx.numpy_helper import to_array

    path, small = written('mask')[0], tmp_path / 'small.onnx'
    small.write_bytes(Path(path).read_bytes())
    quantise(str(small))
    assert small.stat().st_size < 0.8 * os.path.getsize(path)
    exact, rounded = (
        {each.name: to_array(each) for each in onnx.load(str(each)).graph.initializer} for each in (path, small)
    )
    names = [name.removesuffix('_quantized') for name in rounded if name.endswith('_quantized')]
    assert len(names) >= 8
    for name in names:
        steps, size = rounded[f'{name}_quantized'].astype(np.float64), rounded[f'{name}_scale']
        weight = exact[name] if name in exact else exact[name.removesuffix('_Transposed')].T
        size = size if weight.shape[1] == len(size) else size[:, None]
        assert np.abs(steps * size - weight).max() <= 0.5001 * size.max() and steps.dtype.kind == 'f'
        assert 100 < np.abs(steps).max() <= 128


@needs_onnx
def test_reader_without_torch(written, tmp_path):
    """The page's reader, where torch, mmengine and this package cannot be imported, prints what ``predict`` finds."""
    path, _, model = written('mask')
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmconvnextv2'):
        (tmp_path / f'{name}.py').write_text("raise ImportError('blocked')")
    page = (Path(__file__).parents[1] / 'docs' / 'export.md').read_text()
    (tmp_path / 'detect_onnx.py').write_text(page.split('title="detect_onnx.py"\n')[1].split('```')[0])
    # the second is resized, to within a grey level of OpenCV, on which random weights find other objects
    for (height, width), share in (((128, 160), 0.95), ((200, 300), 0)):
        photo = draw_photos(1, height, width)[0]
        Image.fromarray(photo).save(tmp_path / 'photo.png')
        words = [sys.executable, 'detect_onnx.py', path, 'photo.png', 'found.png']
        environment = dict(os.environ, PYTHONPATH=str(tmp_path))
        printed = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert printed.returncode == 0, printed.stderr
        lines = [line.split() for line in printed.stdout.splitlines()]
        found = model.predict(str(tmp_path / 'photo.png'), score_threshold=0.3)
        sides = np.array([line[2:] for line in lines], float)
        near = np.abs(sides - found.boxes[:, None]).max(-1) < 0.01 * width
        near &= np.abs(np.array([float(line[1]) for line in lines]) - found.scores[:, None]) < 0.05
        near &= np.array([line[0] for line in lines]) == np.array([CLASSES[label] for label in found.labels])[:, None]
        assert len(lines) >= 10 and near.any(1).mean() >= share
        assert (sides >= -0.1).all() and (sides <= np.array([width, height] * 2) + 0.1).all() and sides.max() > 100
        assert np.abs(np.asarray(Image.open(tmp_path / 'found.png')).astype(int) - photo).max() > 50


@pytest.mark.parametrize('size, target', [((200, 300), (107, 160)), ((96, 128), (240, 320))])
def test_resampling_of_the_reader(size, target):
    """Pillow's affine transform, with which the page's reader resizes, is OpenCV's resizing to a grey level."""
    import cv2

    photo, (height, width) = draw_photos(1, *size)[0], target
    places = (size[1] / width, 0, 0, 0, size[0] / height, 0)
    bilinear = Image.Resampling.BILINEAR
    found = np.asarray(Image.fromarray(photo).transform((width, height), Image.Transform.AFFINE, places, bilinear))
    assert np.abs(found.astype(int) - cv2.resize(photo, (width, height))).max() <= 1


@pytest.mark.parametrize(
    'soft', [None, dict(method='naive'), dict(method='linear'), dict(method='gaussian', iou_threshold=0.3)]
)
def test_suppression_is_that_of_mmcv(soft):
    """Both operators keep the boxes that mmcv's NMS and soft-NMS keep, with their scores, in each group by itself."""
    from mmcv.ops import nms, soft_nms

    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 80, 2, generator=generator) * 60, torch.rand(2, 80, 2, generator=generator) * 40
    boxes, scores = torch.cat([corner, corner + size], -1), torch.rand(2, 80, generator=generator)
    settings = dict(dict(iou_threshold=0.5, sigma=0.5, min_score=0.1), **soft or {})
    if soft is None:
        found = suppression.suppress(boxes, scores, 0.5, 0.2)
    else:
        numbers = dict(settings, method=suppression.METHODS[settings['method']])
        found = suppression.suppress_softly(boxes, scores, score_threshold=0.2, picks=80, **numbers)
    for group in range(2):
        valid = (scores[group] > 0.2).nonzero().flatten()
        chosen = boxes[group, valid], scores[group, valid]
        kept, places = nms(*chosen, 0.5) if soft is None else soft_nms(*chosen, **settings)
        expected = torch.full((80,), suppression.REMOVED).scatter(0, valid[places], kept[:, 4])
        torch.testing.assert_close(found[group], expected)
        assert 0 < len(places) < 80


def test_pasted_masks():
    """Masks of the size of an image are those of a sampling written in numpy, pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    masks, boxes = torch.rand(1, 2, 5, 5, generator=generator), torch.tensor([[[3.2, 4.0, 30.7, 21.0], [0, 0, 9, 33]]])
    from mmconvnextv2.export import detectors

    found = detectors.paste(masks, boxes, (33, 41))[0] >= 0.5
    for mask, box, pasted in zip(masks[0].numpy(), boxes[0].tolist(), found.numpy()):
        assert (paste(mask, box, 33, 41) == pasted).mean() > 0.999 and pasted.any()


@pytest.mark.parametrize(
    'options, said',
    [
        (('--opset', '7'), '--opset 7 is unknown: choose one of 18'),
        (('--half', '--int8'), 'choose one of them'),
        (('--size', '32', '64'), 'at least 64 pixels'),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    """Options that no file can have are refused before anything is written."""
    release = Path(__file__).parent / 'test_release_0_1' / 'files' / 'upernet'
    words = [str(release / 'config.py'), str(release / 'iter_1.pth'), '--to', 'onnx', '--out', str(tmp_path / 'a.onnx')]
    args = parse_args([*words, *options])
    with pytest.raises(ValueError, match=said):
        args.run(args)
    assert not list(tmp_path.iterdir())


def test_models_that_predict_in_their_own_way(tmp_path):
    """A detector whose prediction a graph does not have is refused in one sentence, with what can be exported."""
    leaf = 'mask2former/mask2former_convnextv2-t_lsj-50e_coco.py'
    config, checkpoint, _ = write_model('mask2former', tmp_path, leaf)
    args = parse_args(['onnx', config, checkpoint, str(tmp_path / 'a.onnx')])
    with pytest.raises(ValueError, match=r'Mask2Former with .* is not exported whole.*--part backbone'):
        args.run(args)


def test_both_command_lines():
    """``CONFIG CHECKPOINT --to KIND --out FILE`` is ``KIND CONFIG CHECKPOINT FILE``."""
    one = parse_args(['a.py', 'b.pth', '--to', 'onnx', '--half', '--out', 'c.onnx', '--size', '96', '128'])
    other = parse_args(['onnx', 'a.py', 'b.pth', 'c.onnx', '--half', '--size', '96', '128'])
    drop = {'run', 'traceback'}
    assert {k: v for k, v in vars(one).items() if k not in drop} == {
        k: v for k, v in vars(other).items() if k not in drop
    }


@needs_onnx
@pytest.mark.slow
def test_pixels_without_data_in_a_file(tmp_path):
    """NaN marks pixels without data in a file of a model with ``valid_sites=True``: a frame of them changes no logits,
    but those that are resized across its edge."""
    import onnxruntime

    config, checkpoint, _ = write_model('upernet', tmp_path)
    target = str(tmp_path / 'upernet.onnx')
    args = parse_args(
        [config, checkpoint, '--to', 'onnx', '--out', target, '--cfg-options', 'model.backbone.valid_sites=True']
    )
    args.run(args)
    session = onnxruntime.InferenceSession(target, providers=['CPUExecutionProvider'])
    images = to_input(draw_photos(2, 96, 128))
    framed = np.full((2, 3, 192, 224), np.nan, np.float32)
    framed[:, :, 64:160, 32:160] = images
    (alone,), (found,) = (session.run(None, dict(images=each)) for each in (images, framed))
    inside = found[:, :, 64:160, 32:160]
    assert np.isfinite(alone).all() and alone.std() > 0.1
    np.testing.assert_allclose(inside[:, :, 4:-4, 4:-4], alone[:, :, 4:-4, 4:-4], rtol=0, atol=1e-4 * alone.std())


def test_comparison_of_detections():
    """Detections that a file lacks, and those that only a file has, are counted; none at all are not called equal."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 12, 2, generator=generator) * 400
    boxes = torch.cat([corners, corners + 50], 2)
    expected = boxes, torch.linspace(0.9, 0.2, 12)[None], torch.arange(12)[None] % 3
    fewer = boxes, expected[1].clone(), expected[2]
    fewer[1][0, 8:] = 0
    compare = partial(DetectorGraph.difference, None, limit=1e-4)
    assert compare(expected, expected).startswith('12 of 12 detections found, within 0.0e+00 px')
    with pytest.raises(ValueError, match="lack 4 of PyTorch's 12 detections"):
        compare(expected, fewer)
    with pytest.raises(ValueError, match="4 of 12 detections that PyTorch's lack"):
        compare(fewer, expected)
    none = boxes, torch.zeros(1, 12), expected[2]
    assert compare(none, none) == 'no detections in random pixels, so none were compared'
