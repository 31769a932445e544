"""What worked with release 0.1 works: its checkpoints, configs, names and command lines; see ``make_release.py``."""

import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import draw_data
from make_release import describe, sums_of_weights

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import parse_test_args
from mmconvnextv2.commands.test import test as run_test
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.utils.config import read_config
from mmconvnextv2.utils.moved import RENAMED

ROOT, FILES = Path(__file__).parents[2], Path(__file__).parent / 'files'
NAMES = json.loads((FILES / 'names.json').read_text())
RESULTS = json.loads((FILES / 'results.json').read_text())
CHECKPOINTS = {path.parent.name: path for path in FILES.glob('*/*.pth')}
TESTED = [task for task in CHECKPOINTS if task != 'fcmae']


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('release')
    draw_data(folder / 'work_dirs' / 'release' / 'data')
    return folder


@pytest.fixture
def home(drawn, monkeypatch):
    """The folder that the configs' relative paths start from."""
    monkeypatch.chdir(drawn)
    return drawn


@pytest.mark.parametrize('task', CHECKPOINTS)
def test_runs_go_on(home, tmp_path, task):
    """A dumped config and its checkpoint resume: the second epoch or iteration follows, FCMAE's with 0.1's weights."""
    last = CHECKPOINTS[task].name.replace('1', '2')
    run_tool(
        train,
        parse_train_args(
            [str(FILES / task / 'config.py'), '--resume', str(CHECKPOINTS[task]), '--work-dir', str(tmp_path / task)]
        ),
    )
    assert (tmp_path / task / last).is_file()
    if task == 'fcmae':
        found = sums_of_weights(tmp_path / task / last)
        assert found.keys() == RESULTS['fcmae'].keys()
        for name, sums in RESULTS['fcmae'].items():
            np.testing.assert_allclose(found[name], sums, rtol=1e-4, atol=1e-5, err_msg=name)


def test_another_batch_is_refused(home, tmp_path):
    """A checkpoint of 0.1 still says how many images an iteration of its run took."""
    args = [str(FILES / 'fcmae' / 'config.py'), '--resume', str(CHECKPOINTS['fcmae']), '--work-dir', str(tmp_path)]
    with pytest.raises(SystemExit, match='makes 1 images per iteration, but the run to resume has 2'):
        run_tool(train, parse_train_args([*args, '--cfg-options', 'train_dataloader.batch_size=1']))


@pytest.mark.parametrize('task', TESTED)
def test_predictions_stay(home, tmp_path, task):
    """A dumped config and its checkpoint predict what 0.1 predicted."""
    out = tmp_path / 'out.pkl'
    run_tool(
        run_test,
        parse_test_args(
            [str(FILES / task / 'config.py'), str(CHECKPOINTS[task]), '--out', str(out), '--work-dir', str(tmp_path)]
        ),
    )
    found = pickle.loads(out.read_bytes())
    assert len(found) == len(RESULTS[task])
    for one in found:
        expected = RESULTS[task]['/'.join(Path(one['img_path']).parts[-2:])]
        if task == 'mask-rcnn':
            for key, values in describe(one).items():
                np.testing.assert_allclose(values, expected[key], rtol=1e-4, atol=1e-3)
        else:
            np.testing.assert_allclose(describe(one), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('task', CHECKPOINTS)
def test_weights_stay(task):
    """A checkpoint's backbone loads strictly, with the values of the file."""
    from mmconvnextv2 import ConvNeXtV2
    from mmconvnextv2.checkpoint import load_backbone, read_arch, to_canonical

    weights = torch.load(CHECKPOINTS[task], map_location='cpu', weights_only=False)['state_dict']
    norms = {name for name in weights if re.match(r'backbone\.norm\d', name)}
    depths, channels = read_arch(to_canonical(weights))
    stages = sorted({int(name[len('backbone.norm')]) for name in norms})
    model = ConvNeXtV2(dict(depths=depths, channels=channels), out_indices=stages or (3,), out_norm=bool(norms))
    load_backbone(model, str(CHECKPOINTS[task]))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[f'backbone.{name}']), name


def test_names_can_be_imported():
    """Every module of 0.1 can be imported, and has the names that its documents list."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        for module in NAMES['modules']:
            import_module(module)
        for module, names in NAMES['python'].items():
            lacking = [name for name in names if not hasattr(import_module(module), name)]
            assert not lacking, module


def test_moved_names_warn_once():
    """A name that moved warns at its first import, with the new place; what it gives is the very object there."""
    code = (
        'import warnings\nwith warnings.catch_warnings(record=True) as said:\n    warnings.simplefilter("always")\n'
        '    from mmconvnextv2.response_norms import CBAM\n    import mmconvnextv2.response_norms\n'
        '    from mmconvnextv2.checkpoint import MatchingWeightsHook\n'
        'import mmconvnextv2.models.response_norms as new\nassert new.CBAM is CBAM\n'
        'print([str(one.message) for one in said if one.category is FutureWarning])'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    places = 'mmconvnextv2.models.response_norms and mmconvnextv2.ops.grn and mmconvnextv2.models.grn'
    hook = 'mmconvnextv2.checkpoint.MatchingWeightsHook is now mmconvnextv2.engine.hooks.MatchingWeightsHook'
    said = [f'mmconvnextv2.response_norms is now {places}', hook]
    assert run.stdout == f'{[f"{one}; the old name will be removed in 0.4" for one in said]}\n', run.stderr


def test_renamed_types_and_arguments_warn():
    """Configs and calls that use a name of 0.1 get what has the new name, and one warning."""
    import mmconvnextv2.pretrain as pretrain
    from mmconvnextv2.checkpoint import from_canonical
    from mmconvnextv2.utils.moved import _warn_of_name

    _warn_of_name.cache_clear()
    transforms = import_module('mmpretrain.registry').TRANSFORMS
    with pytest.warns(FutureWarning, match="type='DrawVisibleCells' is now type='FCMAEMaskGenerator'"):
        assert type(transforms.build(dict(type='DrawVisibleCells', mask_ratio=0.6))) is pretrain.FCMAEMaskGenerator
    with pytest.warns(FutureWarning, match="type='LoadPicture'"):
        assert type(transforms.build(dict(type='LoadPicture', channels=5))) is pretrain.LoadMultiChannelImage
    weights = ConvNeXtV2('atto', out_indices=(3,)).state_dict()
    with pytest.warns(FutureWarning, match=r'from_canonical\(dialect=...\) is now from_canonical\(layout=...\)'):
        old = from_canonical(weights, dialect='timm-conv')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        transforms.build(dict(type='DrawVisibleCells', mask_ratio=0.6))  # said once
        assert old.keys() == from_canonical(weights, 'timm-conv').keys()


@pytest.mark.parametrize('old', RENAMED)
def test_renamed_names_are_found(old):
    """Each name that changed is found where 0.1 had it, and is the very object with the new name."""
    module, _, name = f'mmconvnextv2.{old}'.rpartition('.')
    place, _, new = f'mmconvnextv2.{RENAMED[old]}'.rpartition('.')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        assert getattr(import_module(module), name) is getattr(import_module(place), new)


def test_old_load_config_takes_parsed_arguments():
    """``launch.load_config`` reads the config of parsed arguments, as it did, whatever has its name now."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        launch = import_module('mmconvnextv2.launch')
    args = launch.parse_train_args([str(ROOT / 'configs/quickstart/upernet.py'), '--work-dir', 'there'])
    cfg = launch.load_config(args)
    assert cfg.work_dir == 'there' and cfg.launcher == 'none' and cfg.model.backbone.arch == 'atto'


def test_doctor_runs_under_its_old_name():
    """``python -m`` runs a command that moved."""
    run = subprocess.run([sys.executable, '-m', 'mmconvnextv2.doctor'], capture_output=True, text=True)
    assert 'problem' in run.stdout.splitlines()[-1] and 'python -m' not in run.stderr and 'FutureWarning' in run.stderr


def test_types_are_registered():
    """Configs may name every class that 0.1 registered, in the same registry."""
    for module in NAMES['modules']:
        import_module(module)
    for place, names in NAMES['types'].items():
        scope, _, key = place.rpartition('.')
        registry = getattr(import_module(f'{scope or "mmengine"}.registry'), key)
        assert not [name for name in names if registry.get(name) is None], place


@pytest.mark.parametrize('config', NAMES['configs'])
def test_configs_stay(config):
    """Every config of 0.1 is still read under its path."""
    assert len(read_config(str(ROOT / config)))


def call(tool, arguments, monkeypatch):
    """Run a file of ``tools/`` in this process as a command; return its exit status."""
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / tool), run_name='__main__')
        sys.exit(0)
    return end.value.code


@pytest.mark.parametrize('tool', NAMES['options'])
def test_options_stay(tool, monkeypatch, capsys):
    """Every tool of 0.1 has the options that it had."""
    assert not call(f'tools/{tool}', ['--help'], monkeypatch)
    found = set(re.findall(r'(?<![\w-])--[a-z][\w-]*', capsys.readouterr().out))
    assert not set(NAMES['options'][tool]) - found


@pytest.mark.skipif(not shutil.which('bash'), reason='bash expands the braces of some: install it')
@pytest.mark.parametrize('command', NAMES['commands'])
def test_command_lines_stay(command, tmp_path, monkeypatch, capsys):
    """Every command line of 0.1's documents is understood: in an empty folder it ends with what is missing there."""
    monkeypatch.chdir(tmp_path)
    expanded = subprocess.run(
        ['bash', '-c', f'printf "%s\\n" {command.partition("&&")[0]}'], text=True, capture_output=True, check=True
    ).stdout
    tool, *arguments = expanded.splitlines()
    ended = call(tool, arguments, monkeypatch)
    said = 'error: .*(does not exist|no such file|is not a file)'
    assert isinstance(ended, str) and re.match(said, ended, re.IGNORECASE), (ended, capsys.readouterr().err)
