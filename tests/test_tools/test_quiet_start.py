"""What a run prints before its first loss."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quiet') / 'data'
    make_embedded(str(folder), EmbeddedSpec(unlabelled=4, train=4, val=2, size=64))
    return folder / 'unlabelled'


def lines_before_loss(data, work_dir, *flags):
    """Return what tools/train.py prints before the first loss in a fresh process, errors and warnings included."""
    options = [
        f'train_dataloader.dataset.data_root={data}',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
        'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0',
    ]
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(ROOT / 'configs' / 'quickstart' / 'fcmae.py')]
    run = subprocess.run(
        [*command, '--work-dir', str(work_dir), *flags, '--cfg-options', *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.partition('loss:')[0].splitlines()


def test_the_plan_and_little_else(data, tmp_path):
    """A run prints its plan and at most 40 lines before the first loss; the config and the hooks are in its log."""
    lines = lines_before_loss(data, tmp_path / 'run')
    assert len(lines) <= 40 and any(line.strip().startswith('length') for line in lines)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert 'Config:' in log.read_text() and 'Hooks will be executed' in log.read_text()


def test_verbose_prints_all(data, tmp_path):
    """``--verbose`` prints what the log holds: config, environment and hooks."""
    text = '\n'.join(lines_before_loss(data, tmp_path / 'run', '--verbose'))
    assert 'Config:' in text and 'System environment' in text and 'Hooks will be executed' in text
