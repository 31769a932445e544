"""``tools/sweep.py`` trains a grid, skips what is finished, resumes what is not, and ranks what the runs logged."""

import json
import shlex
import subprocess

import pytest

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.sweep import GRIDS, parse_args, plan_runs, sweep
from mmconvnextv2.commands.train import parse_train_args
from mmconvnextv2.commands.trainings import FINISHED

UPERNET = 'configs/upernet/upernet_convnextv2-b_160k_ade20k-512x512.py'


def test_paper_grids(tmp_path):
    """The grids are the products of the paper's values, a value given by hand replaces the grid's, and every run
    carries its point in settings, folder and overrides."""
    sizes = {
        name: len(plan_runs(parse_args([UPERNET, '--grid', name, '--work-dir', str(tmp_path / name)])))
        for name in GRIDS
    }
    assert sizes == {'mask-rcnn': 2 * 4, 'upernet': 3 * 2 * 4}
    runs = plan_runs(parse_args([UPERNET, '--grid', 'upernet', '--lr', '5e-5', '--work-dir', str(tmp_path / 'own')]))
    assert len({run.folder for run in runs}) == 8 and {run.settings['lr'] for run in runs} == {5e-5}
    for run in runs:
        options = parse_train_args(run.command[2:]).cfg_options
        assert options == {
            'optim_wrapper.optimizer.lr': 5e-5,
            'optim_wrapper.paramwise_cfg.decay_rate': run.settings['decay'],
            'model.backbone.drop_path_rate': run.settings['drop_path'],
        }


def test_dry_run_prints_commands(tmp_path, capsys):
    """Each line is a shell command that trains with the user's arguments and overrides and the point of the grid, and
    then marks the run as finished; finished ones are left out."""
    arguments = [
        UPERNET,
        '--lr',
        '1e-4',
        '2e-4',
        '--drop-path',
        '0',
        '--gpus',
        '4',
        '--work-dir',
        str(tmp_path / 'a b'),
        '--dry-run',
        '--',
        '--amp',
        '--cfg-options',
        'seed=1',
        'train_cfg.max_iters=5',
    ]
    sweep(parse_args(arguments))
    first, second = capsys.readouterr().out.splitlines()
    command, mark = first.split(' && ')
    words = shlex.split(command)
    assert words[2] == 'bash' and words[3].endswith('dist_train.sh') and words[5] == '4'
    args = parse_train_args([words[4], *words[6:]])
    assert (args.amp, args.resume, args.work_dir) == (True, 'auto', str(tmp_path / 'a b' / 'lr0.0001_drop_path0'))
    assert args.cfg_options == {
        'optim_wrapper.optimizer.lr': 1e-4,
        'model.backbone.drop_path_rate': 0,
        'seed': 1,
        'train_cfg.max_iters': 5,
    }
    (tmp_path / 'a b' / 'lr0.0001_drop_path0').mkdir()
    subprocess.run(mark, shell=True, check=True)
    sweep(parse_args(arguments))
    assert capsys.readouterr().out.splitlines() == [second]


def test_mistakes(tmp_path):
    """No grid, an argument that the sweep sets itself, an override of what is swept, and a folder with another sweep
    are refused with what to do."""
    own = ['--work-dir', str(tmp_path / 'sweep')]
    plan_runs(parse_args([UPERNET, '--lr', '1', *own]))
    for arguments, message in (
        ([], 'nothing to sweep: pass values with --lr'),
        (['--lr', '1', '--', '--work-dir', 'x'], '--work-dir is set for each run'),
        (['--lr', '1', '--', '--resume'], '--resume is set for each run'),
        (['--lr', '1', '--', '--cfg-options', 'optim_wrapper.optimizer.lr=2'], 'optim_wrapper.optimizer.lr is set'),
        (['--lr', '1', *own, '--', '--amp'], 'contains other runs .*pass another --work-dir'),
    ):
        with pytest.raises(ValueError, match=message):
            plan_runs(parse_args([UPERNET, *arguments]))


def write_run(folder, *entries):
    path = folder / '20260101_000000' / 'vis_data'
    path.mkdir(parents=True)
    (path / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))


def test_table_is_sorted_by_the_last_value(tmp_path, capsys):
    """The best last value leads, for a loss the least; the best of the run is next to it; runs without a value
    come last; a metric that nobody logged is refused with what there is."""
    arguments = [UPERNET, '--lr', '1', '2', '3', '4', '--work-dir', str(tmp_path), '--table']
    write_run(tmp_path / 'lr1', dict(loss=3.0, iter=1, step=1), dict(mIoU=50.0, step=1), dict(mIoU=40.0, step=2))
    write_run(tmp_path / 'lr2', dict(loss=2.0, iter=1, step=1), dict(mIoU=45.0, step=1))
    write_run(tmp_path / 'lr3', dict(loss=1.0, iter=1, step=1))
    (tmp_path / 'lr2' / FINISHED).touch()
    sweep(parse_args(arguments))
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ['lr', 'mIoU, last', 'best', 'at step', '']
    assert rows[2:] == [
        ['2', '45', '45', '1', 'finished'],
        ['1', '40', '50', '1', 'unfinished'],
        ['3', '', '', '', 'unfinished'],
        ['4', '', '', '', 'not started'],
    ]
    sweep(parse_args([*arguments, '--metric', 'loss']))
    assert [line.split('|')[1].strip() for line in capsys.readouterr().out.splitlines()[2:]] == ['3', '2', '1', '4']
    with pytest.raises(ValueError, match="metric 'mDice'.* available are .*mIoU"):
        sweep(parse_args([*arguments, '--metric', 'mDice']))


@pytest.mark.slow
def test_seeds_are_averaged(tmp_path, capsys):
    """With several seeds a second table has the mean and the sample deviation of each point, best mean first."""
    arguments = [UPERNET, '--lr', '1e-4', '2e-4', '--seed', '0', '1', '2', '--work-dir', str(tmp_path)]
    runs = plan_runs(parse_args(arguments))
    assert [parse_train_args(run.command[2:]).cfg_options['randomness.seed'] for run in runs] == [0, 1, 2] * 2
    for run, value in zip(runs, [1.0, 2.0, 6.0, 4.0, 4.0]):  # the last one has not started
        (run.folder / 'run' / 'vis_data').mkdir(parents=True)
        (run.folder / 'run' / 'vis_data' / 'scalars.json').write_text(json.dumps(dict(mIoU=value, step=1)) + '\n')
    sweep(parse_args([*arguments, '--table']))
    means = capsys.readouterr().out.strip().split('\n\n')[1].splitlines()
    assert means[0] == '| lr | mIoU, last: mean | deviation | seeds |'
    assert means[2:] == ['| 0.0002 | 4 | 0 | 2 |', '| 0.0001 | 3 | 2.64575 | 3 |']


def test_sweep_trains_and_goes_on(tools, tmp_path, capsys):
    """Two learning rates are trained with their rates and ranked by mIoU; called again with one run no longer finished,
    it goes on from its checkpoint and leaves the other alone; a run that fails is named and the others are trained."""
    common = [
        tools.configs['upernet'],
        '--lr',
        '1e-3',
        '1e-4',
        '--work-dir',
        str(tmp_path),
        '--',
        '--cfg-options',
        *tools.options('upernet', 'param_scheduler=None'),
    ]
    blocked = tmp_path / 'lr0.001' / 'iter_1.pth'
    blocked.mkdir(parents=True)
    with pytest.raises(RuntimeError, match='1 of 2 runs failed: see .*lr0.001.console.log'):
        sweep(parse_args(common))
    blocked.rmdir()
    sweep(parse_args(common))
    for rate in (1e-3, 1e-4):
        groups = load_file(tmp_path / f'lr{rate:g}' / 'iter_1.pth')['optimizer']['param_groups']
        assert {group['lr'] for group in groups} == {rate}
    assert len(list(tmp_path.glob('lr0.0001/*/vis_data'))) == 1
    lines = capsys.readouterr().out.splitlines()[-2:]
    scores = [float(line.split('|')[2]) for line in lines]
    assert scores == sorted(scores, reverse=True) and all('finished' in line for line in lines)
    assert (tmp_path / 'sweep.md').read_text().splitlines()[-2:] == lines
