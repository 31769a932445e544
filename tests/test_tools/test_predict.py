"""``tools/predict.py`` predicts what ``tools/test.py`` evaluates, draws it and writes it down."""
import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.config import Config

from mmconvnextv2.command import run_tool
from mmconvnextv2.predict import list_sources, parse_args, predict
from mmconvnextv2.safe_loading import allow_mmengine_checkpoints

ROOT = Path(__file__).parents[2]
VAL = {'mask-rcnn': 'coco/val2017', 'upernet': 'ade/images/validation'}


@pytest.fixture(scope='session')
def evaluated(tools, trained, tmp_path_factory):
    """Return a function that gives the predictions of ``tools/test.py``, by picture name."""

    def evaluate(task):
        out = tmp_path_factory.mktemp('evaluated') / 'out.pkl'
        tools.test(task, tools.last(trained(task), task), out.parent / 'run', arguments=['--out', str(out)])
        return {Path(one['img_path']).stem: one for one in pickle.loads(out.read_bytes())}

    return evaluate


def run_predict(tools, trained, task, out, *inputs):
    checkpoint = tools.last(trained(task), task)
    run_tool(predict, parse_args([
        tools.configs[task], str(checkpoint), *map(str, inputs), '--out', str(out), '--device', 'cpu',
        '--score-thr', '0', '--cfg-options', *tools.options(task)]))
    return json.loads((out / 'predictions.json').read_text())


def same_masks(one, other):
    return all(mask['size'] == list(rle['size']) and mask['counts'] == rle['counts'].decode()
               for mask, rle in zip(one, other, strict=True))


def test_detections_are_those_of_the_evaluation(tools, trained, evaluated, tmp_path):
    """Boxes, scores, classes and masks in predictions.json equal the evaluator's, and the drawing differs from the
    picture where objects are."""
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
    """Label pictures equal the evaluator's labels, and the listed shares are theirs."""
    written = run_predict(tools, trained, 'upernet', tmp_path, tools.data / VAL['upernet'])
    wanted = evaluated('upernet')
    for prediction in written['predictions']:
        labels = mmcv.imread(tmp_path / prediction['labels'], flag='unchanged')
        np.testing.assert_array_equal(labels, wanted[Path(prediction['file']).stem]['pred_sem_seg']['data'][0])
        shares = {name: round(float((labels == label).mean() * 100), 3)
                  for label, name in enumerate(written['classes']) if (labels == label).any()}
        assert prediction['classes'] == shares


def test_video_frames_are_predicted_one_by_one(tools, trained, tmp_path):
    """A video gives a description a frame, equal to those of the frames as pictures, and a drawn video as long."""
    sources = sorted((tools.data / VAL['upernet']).glob('*.png'))
    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'FFV1'), 5, (64, 64))  # without loss
    for source in sources:
        writer.write(cv2.imread(str(source)))
    writer.release()
    frames = run_predict(tools, trained, 'upernet', tmp_path / 'film', film)['predictions']
    pictures = run_predict(tools, trained, 'upernet', tmp_path / 'pictures', *sources)['predictions']
    assert [frame['frame'] for frame in frames] == [0, 1]
    assert [frame['classes'] for frame in frames] == [picture['classes'] for picture in pictures]
    assert mmcv.VideoReader(str(tmp_path / 'film' / 'drawn' / 'film.mp4')).frame_cnt == 2


def test_broken_picture_is_named_and_the_rest_goes_on(tools, trained, tmp_path, capsys):
    """A file that is no picture gets an entry with an error; the others are predicted."""
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a.jpg').write_bytes(b'no picture')
    good = next((tools.data / VAL['upernet']).glob('*.png'))
    (tmp_path / 'in' / 'b.png').write_bytes(good.read_bytes())
    broken, fine = run_predict(tools, trained, 'upernet', tmp_path / 'out', tmp_path / 'in')['predictions']
    assert 'cannot be read' in broken['error'] and fine['classes']


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
        run_tool(predict, parse_args([tools.configs[task], str(checkpoint), str(tools.data / 'unlabelled'), '--out',
                                      str(tmp_path / 'out'), '--device', 'cpu']))
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
    picture = str(next((tools.data / VAL[task]).glob('*.png')))
    config = Config.fromfile(tools.configs[task])
    config.merge_from_dict({'model.backbone.init_cfg': None})
    [ours] = run_predict(tools, trained, task, tmp_path, picture)['predictions']
    checkpoint = str(tools.last(trained(task), task))
    if task == 'mask-rcnn':
        from mmdet.apis import DetInferencer
        config.model.test_cfg.rcnn.score_thr = 0.
        for loader in ('train', 'val', 'test'):
            config[f'{loader}_dataloader'].dataset.data_root = str(tools.data / 'coco')
        theirs = DetInferencer(config, checkpoint, device='cpu', show_progress=False)(picture)['predictions'][0]
        np.testing.assert_allclose(theirs['scores'], [one['score'] for one in ours['instances']], rtol=1e-5)
        return
    from mmseg.apis import MMSegInferencer
    theirs = MMSegInferencer(config, checkpoint, device='cpu')(picture)['predictions']
    np.testing.assert_array_equal(theirs, mmcv.imread(tmp_path / ours['labels'], flag='unchanged'))
