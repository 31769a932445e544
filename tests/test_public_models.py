"""A public model's name replaces its config and its weights in the tools, in Python and as a start."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from small_models import NARROW

import mmconvnextv2
from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.analysis.models import load_subject
from mmconvnextv2.commands.export import parse_args as parse_export
from mmconvnextv2.commands.models import models
from mmconvnextv2.commands.models import parse_args as parse_models
from mmconvnextv2.commands.predict import parse_args, predict
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import parse_test_args
from mmconvnextv2.utils import public_models
from mmconvnextv2.utils.config import load_config
from mmconvnextv2.utils.public_models import find_config, get_model, list_models

ROOT = Path(__file__).parents[1]
CLASSES = ('road', 'building', 'tree')
NAME = 'upernet_narrow'


@pytest.fixture
def public(tmp_path, monkeypatch):
    """A folder of recipes with one public segmentor and its backbone, whose weights a local server has."""
    home, served = tmp_path / 'configs', tmp_path / 'served'
    (home / 'upernet').mkdir(parents=True)
    served.mkdir()
    (home / 'upernet' / 'upernet_convnextv2-a_narrow.py').write_text(
        f"_base_ = '{ROOT}/configs/small/upernet_convnextv2-a_small.py'\ndata_root = '{tmp_path}/own'\n"
        f'model = dict(backbone=dict(arch=dict(_delete_=True, **{NARROW})),\n'
        f'    decode_head=dict(in_channels={list(NARROW["channels"])}, channels=8),\n'
        '    auxiliary_head=dict(in_channels=8, channels=8))\n'
        'test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))\n'
    )
    cfg = load_config(str(home / 'upernet' / 'upernet_convnextv2-a_narrow.py'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.zeros_(model.decode_head.conv_seg.bias)
    with torch.no_grad():
        model.train()
        model.decode_head(model.extract_feat(torch.randn(4, 3, 96, 96)))  # statistics with which classes differ
        model.eval()
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=[[90 * label] * 3 for label in range(3)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), served / 'whole.pth')
    torch.save(dict(state_dict=ConvNeXtV2(NARROW, out_norm=False).state_dict()), served / 'backbone.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_address[1]}'
    entries = [
        entry(NAME, 'upernet_convnextv2-a_narrow', f'{address}/whole.pth'),
        entry('convnextv2-narrow', 'convnextv2-a_narrow', f'{address}/backbone.pth'),
    ]
    (home / 'upernet' / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=entries)))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(public_models, 'CONFIGS', home)
    public_models.public_models.cache_clear()
    yield served
    server.shutdown()
    server.server_close()
    public_models.public_models.cache_clear()


def entry(name, recipe, weights):
    metadata = {'Weights Name': name, 'Weights By': 'a test', 'Weights Licence': 'none', 'Parameters': 10**6}
    metadata['Weights Start'] = 'random'
    results = [dict(Task='Semantic Segmentation', Metrics=dict(mIoU=12.3))] if name == NAME else None
    return dict(Name=recipe, Config=f'configs/upernet/{recipe}.py', Weights=weights, Metadata=metadata, Results=results)


def image(path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_predictions_by_name_are_those_of_the_files(public, tmp_path):
    """``predict NAME image`` predicts as ``predict CONFIG CHECKPOINT image``; so does ``load(NAME)``."""
    photo = image(tmp_path / 'photo.png')
    config, checkpoint = find_config(NAME), str(public / 'whole.pth')
    for out, model in (('named', [NAME]), ('given', [config, checkpoint])):
        run_tool(predict, parse_args([*model, photo, '--out', str(tmp_path / out), '--device', 'cpu']))
    named, given = (np.asarray(Image.open(tmp_path / out / 'labels/photo.png')) for out in ('named', 'given'))
    assert len(np.unique(named)) > 1
    np.testing.assert_array_equal(named, given)
    np.testing.assert_array_equal(mmconvnextv2.load(NAME, device='cpu').predict(photo).labels, named)
    found = json.loads((tmp_path / 'named/predictions.json').read_text())
    assert found['classes'] == list(CLASSES)


def test_a_start_by_name(public):
    """``init_cfg.checkpoint`` takes a name, and loads the weights of its file."""
    model = ConvNeXtV2(NARROW, init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint='convnextv2-narrow'))
    model.init_weights()
    wanted = torch.load(public / 'backbone.pth', weights_only=True)['state_dict']
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    'words, found',
    [
        ([NAME, 'a.jpg', 'b.jpg'], (NAME, ['a.jpg', 'b.jpg'])),
        ([NAME, 'mine.pth', 'a.jpg'], ('mine.pth', ['a.jpg'])),  # its config, with own weights
        (['mine.py', 'mine.pth', 'a.jpg'], ('mine.pth', ['a.jpg'])),
    ],
)
def test_a_name_takes_no_checkpoint(public, words, found):
    """After a name the images follow, unless a checkpoint file does; without a name all is as it was."""
    args = parse_args(words)
    assert (args.checkpoint, args.inputs) == found


@pytest.mark.parametrize(
    'words, message',
    [
        ([NAME], 'or NAME INPUT'),
        (['mine.py', 'mine.pth'], 'or NAME INPUT'),
        (['upernet_narrov', 'a.jpg'], f'did you mean {NAME!r}?'),
        (['upernet_convnextv2-a_narrow_2', 'a.jpg'], 'neither a file nor the name of a public model'),
    ],
)
def test_missing_arguments_and_misspelt_names(public, words, message, capsys):
    """Too few arguments and unknown names end with what is expected, or the name that is meant."""
    with pytest.raises(SystemExit):
        parse_args(words)
    assert message in capsys.readouterr().err


def test_test_takes_a_name(public, capsys):
    """``tools/test.py`` takes a name, or a config with a checkpoint."""
    assert parse_test_args([NAME]).checkpoint == NAME
    assert parse_test_args([NAME, 'mine.pth']).checkpoint == 'mine.pth'
    for words in (['mine.py'], [NAME, 'photo.jpg']):
        with pytest.raises(SystemExit):
            parse_test_args(words)
        assert 'expected CONFIG CHECKPOINT or NAME' in capsys.readouterr().err


def test_export_and_analysis_take_a_name(public, tmp_path, capsys):
    """``export onnx NAME OUT`` writes the file that ``export onnx CONFIG CHECKPOINT OUT`` writes, and analyses take the
    backbone of a name, with its weights."""
    pytest.importorskip('onnxscript', reason='needs ONNX: make export')
    sizes = []
    for name, model in (('named', [NAME]), ('given', [find_config(NAME), str(public / 'whole.pth')])):
        args = parse_export(['onnx', *model, str(tmp_path / f'{name}.onnx'), '--size', '64', '64'])
        args.run(args)
        sizes.append((tmp_path / f'{name}.onnx').stat().st_size)
    assert sizes[0] == sizes[1] and 'segmentor' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse_export(['onnx', NAME])
    assert 'expected CONFIG CHECKPOINT OUT or NAME OUT' in capsys.readouterr().err
    wanted = torch.load(public / 'whole.pth', weights_only=True)['state_dict']
    found = load_subject('mine', NAME).model.state_dict()
    assert all(torch.equal(value, wanted[f'backbone.{name}']) for name, value in found.items())


def test_download_ahead(public, tmp_path, monkeypatch, capsys):
    """``models --download`` fills a folder, from which a tool with ``--weights-dir`` reads without a network."""
    folder = tmp_path / 'weights'
    monkeypatch.setenv('MMCONVNEXTV2_WEIGHTS_DIR', '')
    run_tool(models, parse_models([NAME, '--download', '--weights-dir', str(folder)]))
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / 'whole.pth')
    (public / 'whole.pth').unlink()  # the server has it no longer
    monkeypatch.setenv('MMCONVNEXTV2_WEIGHTS_DIR', '')
    photo = image(tmp_path / 'photo.png')
    run_tool(
        predict,
        parse_args([NAME, photo, '--out', str(tmp_path / 'out'), '--device', 'cpu', '--weights-dir', str(folder)]),
    )
    assert (tmp_path / 'out/labels/photo.png').is_file()


def test_inferencers_of_mmsegmentation(public, tmp_path):
    """The config and the address of a public model are what MMSegmentation's own inferencer takes."""
    inferencer = pytest.importorskip('mmseg.apis').MMSegInferencer
    photo, model = image(tmp_path / 'photo.png'), mmconvnextv2.get_model(NAME)
    found = inferencer(model=model.config, weights=model.weights, classes=CLASSES, palette=[[0] * 3] * 3, device='cpu')
    labels = found(photo, show=False)['predictions']
    np.testing.assert_array_equal(labels, mmconvnextv2.load(NAME, device='cpu').predict(photo).labels)


def test_table_of_public_checkpoints(public, tmp_path):
    """``benchmarks/public_checkpoints.py`` downloads, evaluates and writes a table, whose mIoU is that of the model's
    predictions; a second run evaluates nothing again, and a model that fails has its reason in the table."""
    (tmp_path / 'own/images/val').mkdir(parents=True)
    (tmp_path / 'own/labels/val').mkdir(parents=True)
    rng, model = np.random.default_rng(1), mmconvnextv2.load(NAME, device='cpu')
    counts = np.zeros((3, 3), int)
    for number in range(3):
        path = tmp_path / f'own/images/val/{number}.jpg'
        Image.fromarray(rng.integers(0, 256, (320, 352, 3), np.uint8)).save(path)  # read at this size
        labels = rng.integers(0, 3, (320, 352), np.uint8)
        Image.fromarray(labels).save(tmp_path / f'own/labels/val/{number}.png')
        np.add.at(counts, (labels.ravel(), model.predict(str(path)).labels.ravel()), 1)
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    copy = tmp_path / 'copy' / 'mmconvnextv2'  # whose list of models is the one of this test
    (copy / '.mim').mkdir(parents=True)
    for part in (ROOT / 'mmconvnextv2').iterdir():
        if part.name not in ('.mim', '__pycache__'):
            (copy / part.name).symlink_to(part)
    (copy / '.mim' / 'configs').symlink_to(public_models.CONFIGS)
    environment = {**os.environ, 'PYTHONPATH': str(copy.parent)}
    script = str(ROOT / 'benchmarks/public_checkpoints.py')
    command = [sys.executable, '-W', 'ignore', script, '--out', str(tmp_path / 'out')]
    for _ in range(2):
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        table = (tmp_path / 'out/table.md').read_text()
        assert f'| {NAME} | 12.3 mIoU | {100 * iou.mean():.1f} mIoU |' in table, table
        (public / 'whole.pth').unlink(missing_ok=True)
    (tmp_path / 'out' / NAME / 'metrics.json').unlink()
    shutil.rmtree(tmp_path / 'cache')  # and the server has the file no longer
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert re.search('failed: .* cannot be downloaded', (tmp_path / 'out/table.md').read_text())


def test_the_list(capsys):
    """Every public model has a name of its own, a config that exists, an https address, a stated provenance and
    licence, and a known start; the command lists those that match."""
    public_models.public_models.cache_clear()
    listed = list_models()
    assert len(listed) >= 49 and len({one.name for one in listed}) == len(listed)
    for one in listed:
        assert Path(one.config).is_file() and one.weights.startswith('https://') and one.provenance and one.licence
        assert one.start in ('random', 'FCMAE', 'ImageNet-1K', 'ImageNet-22K')
        assert get_model(one.recipe) == get_model(one.name) == one
    models(parse_models(['mask']))
    said = capsys.readouterr().out
    assert 'mask-rcnn_convnextv2-b' in said and 'convnextv2-atto_fcmae' not in said
    sizes = Config.fromfile(str(ROOT / 'configs/_base_/sizes.py')).sizes
    for arch, size in sizes.items():
        assert get_model(f'convnextv2-{arch}_fcmae').weights == size.fcmae
        assert get_model(f'convnextv2-{arch}_im1k').weights == size.im1k


def test_recipes_by_name():
    """A recipe without public weights is a config by its name, too."""
    cfg = load_config('upernet_convnextv2-a_160k_ade20k-512x512')
    assert cfg.model.backbone.arch == 'atto' and cfg.default_scope == 'mmseg'
