"""``tools/report.py`` puts what any run left in its work folder on one page that a browser draws from disk."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from mmconvnextv2.commands.report import class_tables, parse_args, report_run
from mmconvnextv2.commands.run_tool import run_tool

LOG = """2026/01/01 00:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    PyTorch: 2.11.0
    GPU 0: Imaginary & Sons
------------------------------------------------------------
+-------+------+
| Class | IoU  |
+-------+------+
| old   | 1.0  |
+-------+------+
2026/01/01 00:00:01 - mmengine - INFO - per class results:
+-------+------+
| Class | IoU  |
+-------+------+
| road  | 81.5 |
+-------+------+
"""
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def write_run(work_dir, name, entries):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(entry) for entry in entries) + '\n')
    (folder / 'config.py').write_text(f"model = dict(type='<{name}>')\n")
    (work_dir / name / f'{name}.log').write_text(LOG)
    return folder


@pytest.fixture
def work_dir(tmp_path):
    """A run of four logged iterations, killed, and resumed from the second; two parameter groups; images."""
    folder = tmp_path / 'work' / 'upernet'
    first = [
        dict(loss=4.0 - step / 10, base_lr=1e-3, lr=1e-4, time=0.5, iter=step, step=step) for step in (10, 20, 30, 40)
    ]
    second = [dict(loss=1.0, base_lr=5e-4, lr=5e-5, time=0.25, iter=30, step=30), dict(mIoU=41.25, time=9.0, step=30)]
    write_run(folder, '20260101_000000', first)
    images = write_run(folder, '20260102_000000', second) / 'vis_image'
    images.mkdir()
    Image.new('RGB', (64, 64), (255, 0, 255)).save(images / 'reconstruction_30.png')
    Image.new('RGB', (64, 64), (0, 255, 0)).save(images / 'frame_0.png')
    parameters = [torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(1200))]
    optimizer = torch.optim.AdamW(
        [
            dict(params=parameters[:1], lr=1e-4, lr_scale=0.125, weight_decay=0.05),
            dict(params=parameters[1:], lr=8e-4, lr_scale=1.0, weight_decay=0.0),
        ]
    )
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    torch.save(dict(state_dict={}, optimizer=optimizer.state_dict()), folder / 'iter_30.pth')
    (folder / 'last_checkpoint').write_text('/moved/away/iter_30.pth')
    return folder


def page_of(work_dir, *arguments):
    run_tool(report_run, parse_args([str(work_dir), *arguments]))
    return (work_dir / 'report.html').read_text()


def test_page_tells_what_the_runs_logged(work_dir):
    """The last metric, the last table of the log, the environment and the config are on the page; parameter groups
    are counted from the checkpoint; nothing asks the network."""
    page = page_of(work_dir)
    assert '<td>mIoU</td><td>41.25</td><td>41.25</td><td>30</td>' in page and '<td>loss</td>' not in page
    assert '<td>road</td><td>81.5</td>' in page and '<td>old</td>' not in page
    assert 'GPU 0: Imaginary &amp; Sons' in page and '&lt;20260102_000000&gt;' in page
    assert '<td>0.0001</td><td>0.125</td><td>0.05</td><td>1</td><td>15</td>' in page
    assert '<td>0.0008</td><td>1</td><td>0</td><td>1</td><td>1,200</td>' in page
    assert 'Reconstructions' in page and 'Predictions and ground truth' in page
    assert not re.search(r'https?://|<script|<link', page)


def test_the_deciding_metric_is_plotted_with_its_best_value(tmp_path, monkeypatch):
    """Of a run in epochs, the page shows mask AP over epochs, its best value and epoch, and the plan of its log."""
    plots = []
    monkeypatch.setattr(
        'mmconvnextv2.commands.report.Report.curves',
        lambda self, curves, caption, **labels: plots.append((curves, labels)),
    )
    train = [dict(loss=2.0, epoch=epoch, iter=8 * epoch, step=8 * epoch) for epoch in (1, 2, 3)]
    scores = [
        {'coco/bbox_mAP': 0.1 * step, 'coco/segm_mAP': value, 'step': step}
        for step, value in ((1, 0.25), (2, 0.5), (3, 0.375))
    ]
    write_run(tmp_path, '20260101_000000', [*train, *scores])
    (log,) = tmp_path.glob('*/*.log')
    log.write_text(
        '11/26 - mmengine - INFO - plan\n    data         8 images\n    length       3 epochs\nnext line\n' + LOG
    )
    page = page_of(tmp_path)
    assert '<td>coco/segm_mAP</td><td>0.375</td><td>0.5</td><td>2</td>' in page and '<th>at epoch</th>' in page
    assert '<pre>data         8 images\nlength       3 epochs</pre>' in page
    curves, labels = plots[0]
    assert curves == {'coco/segm_mAP': ([1, 2, 3], [0.25, 0.5, 0.375])}
    assert (labels['xlabel'], labels['best']) == ('epoch', 'max')


def test_evaluations_without_an_epoch_are_placed_by_iteration(tmp_path):
    """Metrics that MMEngine logged at epoch 0 of a run counted in iterations get the iteration before them."""
    entries = [dict(loss=1.0, iter=10, step=10), dict(mIoU=20.0, step=0), dict(loss=0.5, iter=20, step=20)]
    write_run(tmp_path / 'work', '20260101_000000', [*entries, dict(mIoU=30.0, step=0)])
    assert '<td>mIoU</td><td>30</td><td>30</td><td>20</td>' in page_of(tmp_path / 'work')


def test_tables_by_class_say_what_they_evaluate():
    """A detector's tables for boxes and masks stay apart, and each is the last of its kind."""
    table = '+---+---+\n| category | mAP |\n+---+---+\n| cat | {} |\n+---+---+\n'
    lines = [f'mmengine - INFO - Evaluating {kind}...\n{table.format(value)}' for kind, value in RESULTS]
    header = ['category', 'mAP']
    assert class_tables(''.join(lines)) == {'bbox': (header, [['cat', '0.3']]), 'segm': (header, [['cat', '0.4']])}


RESULTS = [('bbox', 0.1), ('segm', 0.2), ('bbox', 0.3), ('segm', 0.4)]


def test_single_entry_is_told_in_words(tmp_path):
    """A run that logged one iteration, which gives no curve, says its losses instead of nothing."""
    folder = tmp_path / 'work'
    write_run(folder, '20260101_000000', [dict(loss=1.25, decode_loss=0.75, lr=1e-4, time=0.5, iter=10, step=10)])
    assert 'Logged once, at iteration 10: loss 1.25, decode_loss 0.75.' in page_of(folder)


def test_feature_distances_are_drawn(work_dir, tmp_path, monkeypatch):
    """--distance draws the table of tools/analyze_features.py, a curve per model; another table is refused."""
    table = tmp_path / 'distance.csv'
    table.write_text(
        'model,block,depth,channels,distance,deviation,pictures\n'
        'GRN,a,0.0,8,0.25,0.1,4\nGRN,b,1.0,8,0.5,0.1,4\nV1,a,1.0,8,0.125,0.1,4\n'
    )
    drawn = {}
    monkeypatch.setattr(
        'mmconvnextv2.commands.report.Report.curves', lambda self, curves, caption, **labels: drawn.update(curves)
    )
    assert 'Feature diversity' in page_of(work_dir, '--distance', str(table))
    assert drawn['GRN'] == ([0.0, 1.0], [0.25, 0.5]) and drawn['V1'] == ([1.0], [0.125])
    table.write_text('a,b\n')
    with pytest.raises(SystemExit, match='is not a distance.csv'):
        page_of(work_dir, '--distance', str(table))


def test_resumed_run_takes_the_place_of_what_it_repeats(work_dir, monkeypatch):
    """Of the iterations that both runs logged, the resumed run's are plotted; time is that of training only, and rates
    are plotted for each depth."""
    drawn = {}
    monkeypatch.setattr(
        'mmconvnextv2.commands.report.Report.curves', lambda self, curves, caption, **labels: drawn.update(curves)
    )
    page_of(work_dir)
    assert drawn['loss'] == ([10, 20, 30], [3.0, 2.0, 1.0])
    assert drawn['time'] == ([10, 20, 30], [0.5, 0.5, 0.25])
    assert drawn['times 0.125'][1] == [1.25e-4, 1.25e-4, 6.25e-5] and drawn['times 1'][1] == [1e-3, 1e-3, 5e-4]


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium: apt-get install chromium')
def test_browser_draws_the_images(work_dir, tmp_path):
    """A headless browser without network shows the colours of the reconstruction and of the prediction."""
    page_of(work_dir)
    subprocess.run(
        [
            CHROMIUM,
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--host-resolver-rules=MAP * ~NOTFOUND',
            f'--screenshot={tmp_path / "page.png"}',
            '--window-size=1000,3000',
            (work_dir / 'report.html').as_uri(),
        ],
        check=True,
        timeout=120,
        capture_output=True,
    )
    pixels = np.asarray(Image.open(tmp_path / 'page.png').convert('RGB')).reshape(-1, 3)
    for colour in ((255, 0, 255), (0, 255, 0)):
        assert (pixels == colour).all(1).sum() >= 64 * 64


def test_given_images_and_mistakes(work_dir, tmp_path):
    """--images adds a folder; a folder without a run, or that is not there, ends as one line and leaves no page."""
    (tmp_path / 'more').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'more' / 'a.png')
    assert '1 of 1' in page_of(work_dir, '--images', str(tmp_path / 'more'))
    for folder in (tmp_path / 'more', tmp_path / 'nowhere'):
        with pytest.raises(SystemExit, match='error: .*--work-dir of a training or test'):
            page_of(folder)
        assert not (folder / 'report.html').exists()


@pytest.mark.parametrize(
    'place',
    [
        '20260102_000000/vis_data/vis_image/frame_1.png',
        '20260102_000000/vis_data/scalars.json',
        '20260102_000000/20260102_000000.log',
        '20260102_000000/vis_data/config.py',
        '20260102_000000/vis_data/vis_image',
        '20260102_000000/vis_data',
        '20260103_000000',
        'last_checkpoint',
    ],
)
def test_links_out_of_the_folder_are_refused(work_dir, tmp_path, place):
    """Whatever of a stranger's folder links elsewhere does not enter the page: images, logs, folders of them."""
    outside, target = tmp_path / 'outside', work_dir / place
    write_run(outside, 'vis_data', [dict(loss=1.0, step=1)])
    (outside / 'frame_1.png').write_text('secret')
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    is_file = '.' in target.name or target.name == 'last_checkpoint'
    target.symlink_to(outside / 'frame_1.png' if is_file else outside)
    with pytest.raises(ValueError, match=f'{target.name}.* links outside'):
        report_run(parse_args([str(work_dir)]))
    assert not (work_dir / 'report.html').exists()


def test_prepared_links_are_not_followed(work_dir, tmp_path):
    """Links named like the page, or like the file that is written first, lead nowhere: the page is a new file."""
    outside = tmp_path / 'outside.txt'
    outside.write_text('kept')
    for name in ('report.html', 'report.html.partial'):
        (work_dir / name).symlink_to(outside)
    report_run(parse_args([str(work_dir)]))
    assert outside.read_text() == 'kept' and not (work_dir / 'report.html').is_symlink()
    assert (work_dir / 'report.html').read_text().startswith('<!doctype html>')


def test_odd_names_and_values(work_dir, tmp_path):
    """A metric whose name looks like a formula, a loss that is null, a torn line and a folder whose name is not UTF-8
    make a page all the same."""
    scalars = work_dir / '20260102_000000' / 'vis_data' / 'scalars.json'
    entries = [{'$x_{': 1.0 + step, 'cost $': 2.0, 'loss': None, 'mIoU': 3.0, 'step': step} for step in (40, 50)]
    scalars.write_text(scalars.read_text() + '\n'.join(map(json.dumps, entries)) + '\n[1]\n{"loss": 0.')
    odd = os.fsencode(tmp_path) + b'/na\xffme'
    os.rename(work_dir, odd)
    page = os.fsdecode(odd) + '/report.html'
    report_run(parse_args([os.fsdecode(odd), '--out', page]))
    with open(page, encoding='utf-8') as file:
        text = file.read()
    assert '$x_{' in text and 'na?me' in text
