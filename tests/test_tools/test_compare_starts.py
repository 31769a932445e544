"""``tools/compare_starts.py`` trains the same recipe from several starts, goes on after a kill, and writes results."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.compare import compare_starts, parse_args, plan_runs
from mmconvnextv2.commands.train import parse_train_args
from mmconvnextv2.commands.trainings import FINISHED

ROOT = Path(__file__).parents[2]
INIT = 'model.backbone.init_cfg.checkpoint=None'  # the key that the tools fixture would set to None


def arguments(tools, tmp_path, *own, config=None, more=()):
    options = tools.options('upernet', INIT, *more)
    options.remove(INIT)
    return [
        config or tools.configs['upernet'],
        '--work-dir',
        str(tmp_path / 'out'),
        *own,
        '--',
        '--cfg-options',
        *options,
    ]


@pytest.fixture
def weights(tools, tmp_path):
    """Backbone weights of the narrow model."""
    torch.manual_seed(0)
    path = tmp_path / 'backbone.pth'
    torch.save(ConvNeXtV2(tools.arch).state_dict(), path)
    return path


def test_runs_differ_only_in_what_is_compared(tools, tmp_path, weights):
    """Runs of a seed and fraction have the same arguments but for the start; all layers train at one rate from every
    start when one of them is random, in recipes that freeze and decay, and as in the recipe on request."""
    starts = ['--start', 'scratch', '--start', f'mine={weights}', '--fractions', '1', '0.5', '--seeds', '2']
    recipe = 'configs/small/upernet_convnextv2-a_small.py'

    def options_of(*more, train=()):
        folder = str(tmp_path / ''.join([*more, *train]).replace('/', ''))
        runs = plan_runs(parse_args([recipe, *starts, '--work-dir', folder, *more, '--', *train]))
        return runs, [parse_train_args(run.command[2:]) for run in runs]

    runs, parsed = options_of()
    assert [tuple(run.settings.values()) for run in runs[:4]] == [
        ('scratch', 0.5, 0), ('mine', 0.5, 0), ('scratch', 1.0, 0), ('mine', 1.0, 0)
    ]  # fmt: skip
    for run, args in zip(runs, parsed):
        assert (args.fraction, args.seed, args.resume) == (run.settings['fraction'], run.settings['seed'], 'auto')
        start = args.cfg_options.pop(
            'model.backbone.init_cfg' if run.settings['start'] == 'scratch' else 'model.backbone.init_cfg.checkpoint'
        )
        assert start == (None if run.settings['start'] == 'scratch' else str(weights))
        assert args.cfg_options == {
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'model.backbone.frozen_stages': 0,
            'optim_wrapper.paramwise_cfg.decay_rate': 1.0,
        }
    kept = options_of('--as-recipe')[1][0].cfg_options
    assert set(kept) == {'default_hooks.checkpoint.max_keep_ckpts', 'model.backbone.init_cfg'}
    assert options_of('--frozen')[1][0].cfg_options['model.backbone.frozen_stages'] == 4
    given = options_of(train=['--cfg-options', 'model.backbone.frozen_stages=2'])[1][0].cfg_options
    assert given['model.backbone.frozen_stages'] == 2 and given['optim_wrapper.paramwise_cfg.decay_rate'] == 1.0


def test_mistakes(tools, tmp_path, weights):
    """What cannot be compared is refused with what to do, before anything trains."""
    mine = ['--start', f'mine={weights}']
    both = ['--start', 'scratch', *mine]
    for own, message in (
        (mine, 'nothing to be compared with'),
        (['--start', 'mine', *mine], 'expected NAME=CHECKPOINT'),
        (['--start', 'scratch', '--start', 'a/b=c'], 'expected NAME=CHECKPOINT'),
        ([*mine, *mine], 'is there twice'),
        (['--start', 'scratch', '--start', 'mine=absent.pth'], '--start mine=.absent.pth. does not exist'),
        ([*both, '--fractions', '0', '1'], r'expected shares in \(0, 1\]'),
        ([*both, '--seeds', '0'], '--seeds 0'),
        ([*both, '--', '--fraction', '0.1'], '--fraction is set for each run'),
        ([*both, '--', '--cfg-options', 'model.backbone.init_cfg=None'], 'init_cfg is set for each run'),
    ):
        with pytest.raises(ValueError, match=message):
            plan_runs(parse_args([tools.configs['upernet'], '--work-dir', str(tmp_path / 'x'), *own]))
    with pytest.raises(ValueError, match='no evaluation'):
        plan_runs(parse_args([tools.configs['fcmae'], '--work-dir', str(tmp_path / 'y'), *both]))
    plan_runs(parse_args([tools.configs['upernet'], '--work-dir', str(tmp_path / 'z'), *both]))
    with pytest.raises(ValueError, match='contains other runs .*pass another --work-dir'):
        plan_runs(parse_args([tools.configs['upernet'], '--work-dir', str(tmp_path / 'z'), *both, '--', '--amp']))
    other = tmp_path / 'other.pth'
    other.touch()
    more = [tools.configs['upernet'], '--work-dir', str(tmp_path / 'z'), '--start', 'scratch', '--start']
    assert len(plan_runs(parse_args([*more, f'other={other}']))) == 2 * 3 * 3  # a start is added later
    with pytest.raises(ValueError, match='contains other runs .*backbone.pth'):
        plan_runs(parse_args([*more, f'mine={other}']))


def test_compares_and_goes_on(tools, tmp_path, weights, capsys):
    """All runs train on their fraction from their start; killed in its first run, the tool takes the training with it,
    and the same command completes the rest; a table, figures, a page and a sentence are left."""
    given = arguments(
        tools, tmp_path, '--start', 'scratch', '--start', f'mine={weights}', '--fractions', '0.5', '--seeds', '2',
        more=['train_cfg.max_iters=2', 'train_cfg.val_interval=2'],
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'compare_starts.py'), *given],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    first = tmp_path / 'out' / 'scratch_0.5_seed0'
    while not list(first.glob('*/*.log')):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode and not (first / FINISHED).exists()
    with pytest.raises(ProcessLookupError):  # nothing of its group is left
        os.killpg(process.pid, 0)

    compare_starts(parse_args(given))
    out = tmp_path / 'out'
    printed = capsys.readouterr().out
    assert 'report.html' in printed and 'they do not cover another pretraining' in printed
    with open(out / 'comparison.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row['start'] for row in rows} == {'scratch', 'mine'}
    total = len(list((tools.data / 'ade' / 'images' / 'training').iterdir()))
    assert {(row['fraction'], int(row['images'])) for row in rows} == {('0.5', max(1, round(total / 2)))}
    for name in ('comparison.png', 'comparison.md', 'report.html'):
        assert (out / name).stat().st_size
    start, moved = load_file(weights), {}
    for name in ('mine', 'scratch'):
        trained = load_file(out / f'{name}_0.5_seed1' / 'iter_2.pth')['state_dict']
        moved[name] = max((trained[f'backbone.{key}'] - value).abs().max() for key, value in start.items())
    assert 0 < moved['mine'] < 0.01 < moved['scratch']  # AdamW moves a weight by at most its rate per step
    compare_starts(parse_args([given[0], '--dry-run', *given[1:]]))
    assert capsys.readouterr().out == ''
    (out / 'mine_0.5_seed1' / FINISHED).unlink()
    compare_starts(parse_args([given[0], '--dry-run', *given[1:]]))
    (line,) = capsys.readouterr().out.splitlines()
    assert shlex.split(line)[-2:] == ['touch', str(out / 'mine_0.5_seed1' / FINISHED)]
