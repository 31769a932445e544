"""A new user's first hour: the commands of the pages on own photos, few labels and serving run as they are written."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from pages import BLOCK, commands_in
from PIL import Image

import mmconvnextv2
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

ROOT = Path(__file__).parents[1]
CLASSES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
STUFF = ('plain', 'stripes', 'marble', 'tiles', *CLASSES)
SMALL = [  # the length of the run and the sizes of its images, in a test
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.batch_size=2',
]
DETECTION = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'model.backbone.init_cfg=None',
    'train_dataloader.dataset.pipeline.2.scale=(96,96)',
    'train_dataloader.dataset.pipeline.3.crop_size=(96,96)',
]
SEGMENTATION = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.dataset.pipeline.2.scale=(256,96)',
    'train_dataloader.dataset.pipeline.3.crop_size=(96,96)',
    'model.data_preprocessor.size=(96,96)',
]
PRETRAINING = ['train_cfg.max_epochs=2', 'train_dataloader.dataset.pipeline.1.scale=64', 'model.backbone.init_cfg=None']


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A clone's folder with rendered data, and nothing else."""
    for folder in ('configs', 'tools'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    make_embedded(str(tmp_path / 'rendered'), EmbeddedSpec(unlabelled=4, train=10, val=1, size=96))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_of(page, *, length):
    """Return the commands of a page, with the numbers of iterations in names of checkpoints replaced by ``length``."""
    text = (ROOT / 'docs' / page).read_text()
    return [
        [re.sub(r'(iter|epoch)_\d+\.pth', rf'\1_{length}.pth', word) for word in words]
        for language, block in BLOCK.findall(text)
        if not language
        for words in commands_in(block)
    ]


def run(words, more=()):
    """Run a command of a page; overrides go behind those of the page."""
    assert words[0] == '.venv/bin/python', words
    option = ['--cfg-options'] if more and '--cfg-options' not in words else []
    ran = subprocess.run([sys.executable, *words[1:], *option, *more], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:] + ran.stdout[-2000:]
    return ran.stdout


def test_own_photos(home):
    """From an export of CVAT to drawn predictions: each of the page's commands does its part, and the report ranks the
    validation images by their mistakes."""
    (home / 'export').mkdir()
    shutil.copytree(home / 'rendered/coco/train2017', home / 'export/images')
    (home / 'export/annotations').mkdir()
    labels = home / 'rendered/coco/annotations/instances_train2017.json'
    shutil.copy(labels, home / 'export/annotations/instances_default.json')
    shutil.copy(next((home / 'export/images').glob('*.png')), 'photo.jpg')
    commands = commands_of('own_photos.md', length=2)
    tools = [Path(words[1]).stem for words in commands]
    assert tools == ['prepare', 'train', 'test', 'report', 'predict']
    said = [run(words, [*SMALL, *DETECTION] if words[1].endswith('train.py') else ()) for words in commands]
    assert '10 images, 8 for training and 2 for validation' in said[0]
    shown = home / 'work_dirs/mine_shown'
    mistakes = json.loads((shown / 'mistakes.json').read_text())
    names = {path.name for path in (home / 'data/mine/val').iterdir()}
    assert {Path(one['file']).name for one in mistakes} == names
    report = (home / 'work_dirs/mine/report.html').read_text()
    assert all(f'{Path(one["file"]).name}: {one["text"]}' in report for one in mistakes)
    assert 'By class, boxes' in report and 'By class, masks' in report
    (found,) = json.loads((home / 'found/predictions.json').read_text())['predictions']
    assert found['file'] == 'photo.jpg' and (home / 'found/drawn/photo.png').is_file()


def test_few_labels(home):
    """Pretraining on unlabelled images, label PNGs made into a training set, two starts: the pretrained run takes every
    weight of the pretraining, the other none, and both are evaluated and compared."""
    shutil.copytree(home / 'rendered/unlabelled', home / 'images')
    shutil.copytree(home / 'rendered/ade/images/training', home / 'labelled/images')
    (home / 'labelled/labels').mkdir()
    for path in sorted((home / 'rendered/ade/annotations/training').glob('*.png')):
        labels = np.array(Image.open(path)).astype(int) - 1  # 0 is not labelled there
        Image.fromarray(np.where(labels < 0, 255, labels).astype(np.uint8)).save(home / 'labelled/labels' / path.name)
    (home / 'labelled/classes.txt').write_text('\n'.join(STUFF))
    commands = commands_of('few_labels.md', length=2)
    assert [Path(words[1]).stem for words in commands] == ['train', 'prepare', 'compare_starts']
    at = commands[2].index('--')
    commands[2][at:at] = ['--fractions', '0.5', '--seeds', '1']
    more = [[*SMALL, *PRETRAINING], (), [*SMALL, *SEGMENTATION]]
    said = [run(words, options) for words, options in zip(commands, more)]
    assert '10 images, 8 for training and 2 for validation' in said[1]
    out = home / 'work_dirs/config_starts'
    consoles = {start: (out / f'{start}_0.5_seed0/console.log').read_text() for start in ('pretrained', 'scratch')}
    assert '136 weights loaded' in consoles['pretrained'] and 'weights loaded' not in consoles['scratch']
    assert '4 of 8 images (fraction 0.5, seed 0)' in consoles['scratch']
    assert '| 0.5 | 4 |' in said[2] and 'which shows nothing alone' in said[2]


def test_serving(home):
    """The page's server answers with the label map that ``predict`` returns, and prints nothing."""
    text = (ROOT / 'docs' / 'python.md').read_text()
    (code,) = re.findall(r'^```python title="serve.py"\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    run_of = 'configs/quickstart/upernet.py'
    options = [*SMALL, 'train_cfg.max_iters=2', 'model.backbone.init_cfg=None']
    roots = [f'{split}_dataloader.dataset.data_root=rendered/ade' for split in ('train', 'val', 'test')]
    words = ['.venv/bin/python', 'tools/train.py', run_of, '--work-dir', 'run']
    run(words, [*options, *roots])
    checkpoint = 'run/iter_2.pth'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    (home / 'serve.py').write_text(code.replace('8000', str(port)))
    with subprocess.Popen(
        [sys.executable, 'serve.py', run_of, checkpoint], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        image = next((home / 'rendered/ade/images/training').glob('*.png'))
        try:
            answer = post(f'http://127.0.0.1:{port}', image.read_bytes(), server)
        finally:
            server.terminate()
        assert server.stdout.read() == b''
    labels = cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_UNCHANGED)
    wanted = mmconvnextv2.load(run_of, checkpoint, device='cpu').predict(image).labels
    np.testing.assert_array_equal(labels, wanted)


def post(url, content, server):
    """Post bytes as soon as the server answers, and return the answer."""
    for _ in range(120):
        try:
            return urllib.request.urlopen(url, data=content, timeout=60).read()
        except urllib.error.URLError:  # not listening yet
            assert server.poll() is None, server.stdout.read()
        time.sleep(0.5)
    raise AssertionError('the server does not answer')
