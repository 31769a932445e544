"""A pretraining run that is killed and resumed ends with the weights of the quiet run."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

EPOCHS = 3


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / 'pictures').mkdir()
    for number in range(24):
        pixels = generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'pictures' / f'{number:02}.png')
    return tmp_path / 'pictures'


def start(folder, work_dir, num_workers, *arguments):
    """Start ``tools/train.py`` on the shipped folder config with a narrow model, in fp32."""
    options = {
        'train_dataloader.dataset.data_root': folder, 'train_dataloader.dataset.pipeline.1.scale': 64,
        'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': num_workers,
        'train_dataloader.persistent_workers': num_workers > 0, 'model.neck.channels': 16,
        'train_cfg.max_epochs': EPOCHS, 'default_hooks.checkpoint.interval': 1, 'optim_wrapper.type': 'OptimWrapper',
        'optim_wrapper.optimizer.lr': 0.01, 'param_scheduler.0.end': 2, 'param_scheduler.1.begin': 2,
        'param_scheduler.1.end': EPOCHS}
    command = [sys.executable, 'tools/train.py', 'configs/fcmae/fcmae_convnextv2-atto_1xb64-800e_folder.py',
               '--work-dir', str(work_dir), *arguments, '--cfg-options', *(f'{k}={v}' for k, v in options.items())]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'}, start_new_session=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_quiet_run(folder, tmp_path):
    """SIGKILL in the middle, then --resume with another number of workers, gives the same bits: weights and moments."""
    finish(start(folder, tmp_path / 'quiet', 0))
    process = start(folder, tmp_path / 'killed', 0)
    while not (tmp_path / 'killed' / 'last_checkpoint').exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'killed' / f'epoch_{EPOCHS}.pth').exists()
    finish(start(folder, tmp_path / 'killed', 2, '--resume'))
    from mmconvnextv2.safe_loading import load_file
    quiet, resumed = (load_file(tmp_path / run / f'epoch_{EPOCHS}.pth') for run in ('quiet', 'killed'))
    first = load_file(tmp_path / 'quiet' / 'epoch_1.pth')
    for key, value in quiet['state_dict'].items():
        assert torch.equal(resumed['state_dict'][key], value), key
    assert any(not torch.equal(first['state_dict'][key], value) for key, value in quiet['state_dict'].items())
    for index, moments in quiet['optimizer']['state'].items():
        assert torch.equal(resumed['optimizer']['state'][index]['exp_avg_sq'], moments['exp_avg_sq'])
