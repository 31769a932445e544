"""What a run prints before its first loss."""

import os
import pty
import re
import shutil
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


def command(data, work_dir, *flags):
    """Return the words of a run of two iterations."""
    options = [
        f'train_dataloader.dataset.data_root={data}',
        'train_dataloader.batch_size=2',
        'default_hooks.logger.interval=1',
        'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0',
    ]
    words = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(ROOT / 'configs' / 'quickstart' / 'fcmae.py')]
    return [*words, '--work-dir', str(work_dir), *flags, '--cfg-options', *options]


def lines_before_loss(data, work_dir, *flags, env=None):
    """Return what tools/train.py prints before the first loss in a fresh process, errors and warnings included."""
    run = subprocess.run(
        command(data, work_dir, *flags),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.partition('loss:')[0].splitlines()


def without_compiler(folder):
    """Return a PATH with the shell alone."""
    folder.mkdir()
    for name in ('sh', 'head'):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def test_the_plan_and_little_else(data, tmp_path):
    """A run prints its plan and at most 40 lines before the first loss, none about a compiler that is not there; the
    config and the hooks are in its log."""
    lines = lines_before_loss(data, tmp_path / 'run', env=dict(os.environ, PATH=without_compiler(tmp_path / 'bin')))
    assert not any('not found' in line for line in lines)
    assert len(lines) <= 40 and any(line.strip().startswith('length') for line in lines)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert 'Config:' in log.read_text() and 'Hooks will be executed' in log.read_text()


def test_verbose_prints_all(data, tmp_path):
    """``--verbose`` prints what the log holds: config, environment and hooks."""
    text = '\n'.join(lines_before_loss(data, tmp_path / 'run', '--verbose'))
    assert 'Config:' in text and 'System environment' in text and 'Hooks will be executed' in text


def printed_on_a_terminal(words):
    """Run a command on a pseudo-terminal, and return what it prints."""
    main, side = pty.openpty()
    with subprocess.Popen(words, stdout=side, stderr=side, env=dict(os.environ, TERM='xterm', COLUMNS='120')) as run:
        os.close(side)
        chunks = []
        while True:
            try:
                chunks.append(os.read(main, 4096))
            except OSError:  # the other side is closed
                break
            if not chunks[-1]:
                break
    os.close(main)
    text = b''.join(chunks).decode()
    assert run.returncode == 0, text
    return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)


def test_progress_bar_on_a_terminal(data, tmp_path):
    """On a terminal, one line shows the iterations, the loss and the time left instead of a line per logged iteration;
    the log file has those lines, and other lines such as that of the checkpoint stay."""
    text = printed_on_a_terminal(command(data, tmp_path / 'run'))
    bars = [line for line in re.split(r'[\r\n]+', text) if ' left' in line and 'loss' in line]
    assert '2/2' in bars[-1] and re.search(r'loss \d\.\d{4}', bars[-1])
    assert 'Epoch(train)' not in text and 'Saving checkpoint' in text
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert log.read_text().count('Epoch(train)') == 2
