"""``tools/predict.py`` predicts what ``tools/test.py`` evaluates, draws it and writes it down."""

import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints
from mmconvnextv2.commands.predict import (
    ImageSource,
    Predictor,
    confidence_of,
    list_sources,
    parse_args,
    predict,
    write_gallery,
)
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.datasets.image_files import class_colours, write_label_map
from mmconvnextv2.engine.inference.images import as_bgr
from mmconvnextv2.utils.config import import_scope, read_config

ROOT = Path(__file__).parents[2]
VAL = {'mask-rcnn': 'coco/val2017', 'upernet': 'ade/images/validation'}


@pytest.fixture(scope='session')
def evaluated(tools, trained, tmp_path_factory):
    """Return a function that gives the predictions of ``tools/test.py``, by image name."""

    def evaluate(task):
        out = tmp_path_factory.mktemp('evaluated') / 'out.pkl'
        tools.test(task, tools.last(trained(task), task), out.parent / 'run', arguments=['--out', str(out)])
        return {Path(one['img_path']).stem: one for one in pickle.loads(out.read_bytes())}

    return evaluate


def run_predict(tools, trained, task, out, *inputs):
    checkpoint = tools.last(trained(task), task)
    run_tool(
        predict,
        parse_args(
            [
                tools.configs[task],
                str(checkpoint),
                *map(str, inputs),
                '--out',
                str(out),
                '--device',
                'cpu',
                '--score-thr',
                '0',
                '--cfg-options',
                *tools.options(task),
            ]
        ),
    )
    return json.loads((out / 'predictions.json').read_text())


def same_masks(one, other):
    return all(
        mask['size'] == list(rle['size']) and mask['counts'] == rle['counts'].decode()
        for mask, rle in zip(one, other, strict=True)
    )


def test_detections_are_those_of_the_evaluation(tools, trained, evaluated, tmp_path):
    """Boxes, scores, classes and masks in predictions.json equal the evaluator's, and the drawing differs from the
    image where objects are."""
    written = run_predict(tools, trained, 'mask-rcnn', tmp_path, tools.data / VAL['mask-rcnn'])
    wanted = evaluated('mask-rcnn')
    assert len(written['predictions']) == len(wanted) == 2
    for prediction in written['predictions']:
        name = Path(prediction['file']).stem
        found, instances = wanted[name]['pred_instances'], prediction['instances']
        np.testing.assert_allclose([one['score'] for one in instances], found['scores'].numpy(), rtol=1e-5)
        np.testing.assert_allclose([one['box'] for one in instances], found['bboxes'].numpy(), rtol=1e-4, atol=1e-3)
        assert [one['class'] for one in instances] == [written['classes'][label] for label in found['labels']]
        assert len(instances) > 0 and same_masks([one['mask'] for one in instances], found['masks'])
        drawn = mmcv.imread(tmp_path / 'drawn' / f'{name}.png')
        assert np.abs(drawn.astype(int) - mmcv.imread(prediction['file'])).max() > 50


def test_segmentation_is_that_of_the_evaluation(tools, trained, evaluated, tmp_path):
    """Label images equal the evaluator's labels, and the listed shares are theirs."""
    written = run_predict(tools, trained, 'upernet', tmp_path, tools.data / VAL['upernet'])
    wanted = evaluated('upernet')
    for prediction in written['predictions']:
        labels = np.asarray(Image.open(tmp_path / prediction['labels']))
        np.testing.assert_array_equal(labels, wanted[Path(prediction['file']).stem]['pred_sem_seg']['data'][0])
        shares = {
            name: round(float((labels == label).mean() * 100), 3)
            for label, name in enumerate(written['classes'])
            if (labels == label).any()
        }
        assert prediction['classes'] == shares
        probabilities = wanted[Path(prediction['file']).stem]['seg_logits']['data'].double().softmax(0)
        assert prediction['confidence'] == pytest.approx(float(probabilities.amax(0).mean()), abs=1e-4)


def test_confidence_of_large_and_of_binary_segmentations():
    """Above 512 pixels the mean is over a grid of them; one logit is a probability and its complement."""
    logits = torch.randn(3, 1100, 20, generator=torch.Generator().manual_seed(0)) * 3
    for channels in (3, 1):
        sample = SegDataSample(
            seg_logits=PixelData(data=logits[:channels]), pred_sem_seg=PixelData(data=logits[:1] > 0)
        )
        grid = logits[:channels, ::3, ::3].double().numpy()
        odds = np.exp(grid if channels == 3 else np.concatenate([grid, 0 * grid]))
        assert confidence_of(sample) == pytest.approx((odds / odds.sum(0)).max(0).mean(), abs=1e-4)


def test_gallery_shows_the_least_confident_first(tmp_path):
    """predictions.html captions every drawn image with its file and classes, the least confident first; an image
    without objects comes before all, one that failed is left out."""
    (tmp_path / 'drawn').mkdir()
    found = dict(sure=[('dog', 0.9)], doubtful=[('cat', 0.4), ('cat', 0.8), ('dog', 0.7)], empty=[], failed=None)
    sources = [ImageSource(f'{name}.jpg', name, False) for name in found]
    predictions = [dict(file='failed.jpg', error='it is damaged')]
    for name, objects in found.items():
        if objects is not None:
            Image.new('RGB', (900, 30)).save(tmp_path / 'drawn' / f'{name}.png')
            instances = [dict({'class': kind}, score=score) for kind, score in objects]
            lowest = min((score for _, score in objects), default=0.0)
            predictions.append(dict(file=f'{name}.jpg', instances=instances, confidence=lowest))
    write_gallery(predictions, sources, str(tmp_path))
    page = (tmp_path / 'predictions.html').read_text()
    captions = ['empty: nothing, confidence 0.00', 'doubtful: 2 cat, 1 dog, confidence 0.40', 'sure: 1 dog, confidence']
    places = [page.index(f'<figcaption>{caption}') for caption in captions]
    assert places == sorted(places) and 'failed' not in page


def test_video_frames_are_predicted_one_by_one(tools, trained, tmp_path):
    """A video gives a description per frame, equal to those of the frames as images, and an annotated video as long."""
    sources = sorted((tools.data / VAL['upernet']).glob('*.png'))
    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'FFV1'), 5, (64, 64))  # without loss
    for source in sources:
        writer.write(cv2.imread(str(source)))
    writer.release()
    frames = run_predict(tools, trained, 'upernet', tmp_path / 'film', film)['predictions']
    images = run_predict(tools, trained, 'upernet', tmp_path / 'images', *sources)['predictions']
    assert [frame['frame'] for frame in frames] == [0, 1]
    assert [frame['classes'] for frame in frames] == [image['classes'] for image in images]
    assert mmcv.VideoReader(str(tmp_path / 'film' / 'drawn' / 'film.mp4')).frame_cnt == 2
    for frame, image in zip(frames, images):
        maps = [
            np.asarray(Image.open(tmp_path / folder / one['labels']))
            for folder, one in (('film', frame), ('images', image))
        ]
        assert np.array_equal(*maps)


def test_label_maps_show_colours_and_hold_indices(tmp_path):
    """A viewer shows the palette's colours, a reader of indices finds the labels; 300 classes take 16 bits."""
    labels, palette = np.array([[0, 1, 2], [2, 1, 0]]), [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    write_label_map(labels, str(tmp_path / 'new' / 'a.png'), palette)
    image = Image.open(tmp_path / 'new' / 'a.png')
    assert np.array_equal(np.asarray(image), labels)
    assert np.array_equal(np.asarray(image.convert('RGB')), np.array(palette)[labels])
    assert len(np.unique(class_colours(40), axis=0)) == 40
    write_label_map(labels + 298, str(tmp_path / 'b.png'))
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'b.png')), labels + 298)


def predict_all(tools, trained, task, out, *inputs, options=()):
    """Predict, and return the line that the tool ends with, None at status 0, and what it wrote."""
    ended = None
    try:
        run_tool(
            predict,
            parse_args(
                [
                    tools.configs[task],
                    str(tools.last(trained(task), task)),
                    *map(str, inputs),
                    '--out',
                    str(out),
                    '--device',
                    'cpu',
                    '--score-thr',
                    '0',
                    '--cfg-options',
                    *tools.options(task),
                    *options,
                ]
            ),
        )
    except SystemExit as stop:
        ended = str(stop)
    done = out / 'predictions.json'
    return ended, json.loads(done.read_text())['predictions'] if done.exists() else None


def test_bad_images_are_named_and_the_rest_goes_on(tools, trained, tmp_path):
    """Files that are not images, have no bytes or end early get an entry with an error, the others are predicted, and
    the command ends with one line and another status than 0."""
    (tmp_path / 'in').mkdir()
    good = next((tools.data / VAL['upernet']).glob('*.png')).read_bytes()
    for name, content in (('a.jpg', b'no image'), ('b.png', good), ('c.png', b''), ('d.png', good)):
        (tmp_path / 'in' / name).write_bytes(content)
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'out', tmp_path / 'in')
    assert ended.startswith('error: 2 of 4 inputs were not predicted') and 'a.jpg: it cannot be read' in ended
    assert [Path(one['file']).name for one in found] == ['a.jpg', 'b.png', 'c.png', 'd.png']
    assert found[2]['error'] == 'it is empty' and found[1]['classes'] == found[3]['classes']
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names == {'predictions.json', 'predictions.html', 'drawn', 'labels'}


def test_stopped_predictions_go_on(tools, trained, tmp_path, monkeypatch):
    """A run that is stopped, or killed in the middle of a line, loses nothing: called again it predicts the rest alone,
    and the file is that of a run in one go; other settings start over."""
    images = sorted((tools.data / VAL['upernet']).glob('*.png'))
    whole = predict_all(tools, trained, 'upernet', tmp_path / 'whole', *images)[1]
    seen, call = [], Predictor.__call__

    def stop_at_the_second(self, results):
        seen.append(results['img_path'])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return call(self, results)

    monkeypatch.setattr(Predictor, '__call__', stop_at_the_second)
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'out', *images)
    assert 'run the same command to continue' in ended and found is None
    with open(tmp_path / 'out' / 'predictions.jsonl', 'a') as file:
        file.write('{"file": "torn')
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'out', *images)
    assert ended is None and seen == [str(images[0]), str(images[1]), str(images[1])]
    assert found == whole
    seen[:] = [None] * 2
    (tmp_path / 'out' / 'predictions.jsonl').write_text(f'{{"run": {{}}}}\n{{"done": "{images[0]}"}}\n')
    assert predict_all(tools, trained, 'upernet', tmp_path / 'out', *images)[1] == whole and len(seen) == 4


def test_cut_video_is_said(tools, trained, tmp_path):
    """A video that announces more frames than it holds keeps those that could be read, and has an error behind them."""
    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 64))
    for number in range(30):
        writer.write(np.full((64, 64, 3), number * 8, np.uint8))
    writer.release()
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'whole', film)
    assert ended is None and len(found) == 30
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'cut', film)
    assert f'it ends after {len(found) - 1} of 30 frames' in ended and 1 < len(found) < 30
    assert found[-1]['frame'] == len(found) - 1 and 'classes' in found[-2]
    (tmp_path / 'junk.mp4').write_bytes(b'junk')
    ended, found = predict_all(tools, trained, 'upernet', tmp_path / 'junk', tmp_path / 'junk.mp4', film)
    assert 'cannot be read as a video' in ended and '2 of 2 inputs' in ended and len(found) > 2


def build_model(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    'load, channels',
    [
        (dict(type='LoadImageFromFile', color_type='grayscale'), 1),
        (dict(type='mmpretrain.LoadMultiChannelImage', channels=5), 5),
    ],
)
def test_other_channels_follow_the_test_pipeline(tools, tmp_path, load, channels):
    """A model of grey images or of arrays with five bands, whose loader is only in test_dataloader, predicts
    what ``tools/test.py``'s data loader feeds it; frames of a video become grey too."""
    cfg = read_config(tools.configs['upernet'])
    import_scope(cfg)
    import_module('mmconvnextv2.pretrain')
    cfg.merge_from_dict({'model.backbone.init_cfg': None, 'model.backbone.in_channels': channels})
    cfg.model.data_preprocessor.update(mean=[114.5] * channels, std=[57.9] * channels, bgr_to_rgb=False)
    cfg.test_dataloader.dataset.pipeline[0] = load
    model = build_model(cfg)
    torch.save(
        dict(
            state_dict=model.state_dict(),
            meta=dict(dataset_meta=dict(classes=cfg.metainfo.classes, palette=[[number] * 3 for number in range(10)])),
        ),
        tmp_path / 'a.pth',
    )
    path = tmp_path / ('a.png' if channels == 1 else 'a.npy')
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, channels), dtype=np.uint8)
    if channels == 1:
        cv2.imwrite(str(path), pixels)
    else:
        np.save(path, pixels)
    predictor = Predictor(cfg, str(tmp_path / 'a.pth'), 'cpu')
    results = predictor.read(str(path))
    sample = predictor(results)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = model.test_step(dict(inputs=[image], data_samples=[sample.clone()]))[0].pred_sem_seg.data
    assert torch.equal(sample.pred_sem_seg.data, expected)
    assert predictor.draw(as_bgr(results['img']), sample).shape == (64, 64, 3)
    if channels == 1:
        frame = predictor(np.repeat(pixels, 3, 2))
        assert torch.equal(frame.pred_sem_seg.data, expected)


def test_names_of_results(tmp_path):
    """Results keep a folder's tree; two files that would share a name are refused."""
    for name in ('a/x.png', 'b/x.png', 'b/y.JPG', 'b/readme.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.name for source in list_sources([str(tmp_path)])] == ['a/x', 'b/x', 'b/y']
    with pytest.raises(ValueError, match="'x'"):
        list_sources([str(tmp_path / 'a'), str(tmp_path / 'b')])


@pytest.mark.parametrize('task,message', [('mask-rcnn', 'is of another model'), ('fcmae', 'default_scope=')])
def test_mistakes_end_in_one_line(tools, trained, tmp_path, task, message):
    """A segmentor's checkpoint in a detector's config, and a config that is neither, end as one line."""
    checkpoint = tools.last(trained('upernet'), 'upernet')
    with pytest.raises(SystemExit) as ended:
        run_tool(
            predict,
            parse_args(
                [
                    tools.configs[task],
                    str(checkpoint),
                    str(tools.data / 'unlabelled'),
                    '--out',
                    str(tmp_path / 'out'),
                    '--device',
                    'cpu',
                ]
            ),
        )
    assert str(ended.value).startswith('error: ') and message in str(ended.value)
    assert not (tmp_path / 'out').exists()


def test_command_line(tools):
    """The tool answers --help with its example."""
    run = subprocess.run([sys.executable, 'tools/predict.py', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and 'Example: python tools/predict.py' in run.stdout


@pytest.mark.parametrize('task', ['mask-rcnn', 'upernet'])
def test_inferencers_take_our_configs(tools, trained, tmp_path, task):
    """mmdet's and mmseg's inferencers, given our config and checkpoint, predict what tools/predict.py does."""
    allow_mmengine_checkpoints()
    image = str(next((tools.data / VAL[task]).glob('*.png')))
    config = Config.fromfile(tools.configs[task])
    config.merge_from_dict({'model.backbone.init_cfg': None})
    [ours] = run_predict(tools, trained, task, tmp_path, image)['predictions']
    checkpoint = str(tools.last(trained(task), task))
    if task == 'mask-rcnn':
        from mmdet.apis import DetInferencer

        config.model.test_cfg.rcnn.score_thr = 0.0
        for loader in ('train', 'val', 'test'):
            config[f'{loader}_dataloader'].dataset.data_root = str(tools.data / 'coco')
        theirs = DetInferencer(config, checkpoint, device='cpu', show_progress=False)(image)['predictions'][0]
        np.testing.assert_allclose(theirs['scores'], [one['score'] for one in ours['instances']], rtol=1e-5)
        return
    from mmseg.apis import MMSegInferencer

    theirs = MMSegInferencer(config, checkpoint, device='cpu')(image)['predictions']
    np.testing.assert_array_equal(theirs, np.asarray(Image.open(tmp_path / ours['labels'])))
