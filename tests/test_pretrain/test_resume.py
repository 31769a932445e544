"""A run that is killed and resumed, on as many processes or others, ends with the weights of the quiet run."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fcmae_runs import BATCH, ITERATIONS, assert_same, in_processes, make_config, read, resume, train, write_images
from PIL import Image

from mmconvnextv2.pretrain import DeterministicSampler, UnlabelledImages

EPOCHS = 3
EVERYTHING = {
    'optim_wrapper.type': 'FP16OptimWrapper',
    'optim_wrapper.loss_scale': dict(growth_interval=2),
    'model.backbone.drop_path_rate': 0.5,
    'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
}
DOUBLE = {'model.type': 'DoubleFCMAE'}


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for number in range(24):
        pixels = generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{number:02}.png')
    return tmp_path / 'images'


def start(folder, work_dir, num_workers, *arguments):
    """Start ``tools/train.py`` on the shipped folder config with a narrow model, in fp32."""
    options = {
        'train_dataloader.dataset.data_root': folder,
        'train_dataloader.dataset.pipeline.1.scale': 64,
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': num_workers,
        'train_dataloader.persistent_workers': num_workers > 0,
        'model.neck.channels': 16,
        'train_cfg.max_epochs': EPOCHS,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'optim_wrapper.type': 'OptimWrapper',
        'optim_wrapper.optimizer.lr': 0.01,
        'param_scheduler.0.end': 2,
        'param_scheduler.1.begin': 2,
        'param_scheduler.1.end': EPOCHS,
    }
    command = [
        sys.executable,
        'tools/train.py',
        'configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py',
        '--work-dir',
        str(work_dir),
        *arguments,
        '--cfg-options',
        *(f'{k}={v}' for k, v in options.items()),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_killed_and_resumed_is_bitwise_the_quiet_run(folder, tmp_path):
    """SIGKILL in the middle of an epoch of six iterations, then --resume with another number of workers, gives the same
    bits: weights and moments."""
    finish(start(folder, tmp_path / 'quiet', 0))
    process = start(folder, tmp_path / 'killed', 0)
    while not (tmp_path / 'killed' / 'iter_8.pth').exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'killed' / 'iter_12.pth').exists()
    finish(start(folder, tmp_path / 'killed', 2, '--resume'))
    from mmconvnextv2.checkpoint.load import load_file

    quiet, resumed = (load_file(tmp_path / run / f'iter_{6 * EPOCHS}.pth') for run in ('quiet', 'killed'))
    first = load_file(tmp_path / 'quiet' / 'iter_6.pth')
    for key, value in quiet['state_dict'].items():
        assert torch.equal(resumed['state_dict'][key], value), key
    assert any(not torch.equal(first['state_dict'][key], value) for key, value in quiet['state_dict'].items())
    for index, moments in quiet['optimizer']['state'].items():
        assert torch.equal(resumed['optimizer']['state'][index]['exp_avg_sq'], moments['exp_avg_sq'])


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def quiet(images, tmp_path_factory):
    """An uninterrupted run with a loss scaler, an EMA and drop path, and its checkpoint after each iteration."""
    folder = tmp_path_factory.mktemp('quiet')
    train(make_config(images, folder, **EVERYTHING))
    return folder


@pytest.mark.parametrize('iteration', range(1, ITERATIONS))
def test_resumed_after_any_iteration_is_bitwise_the_quiet_run(images, quiet, tmp_path, iteration):
    """From the checkpoint of any iteration, in the middle of an epoch or at its end and with another number of
    workers, a new run ends in the same bits: weights, moments, schedulers, EMA and loss scaler; DropPath draws too."""
    resume(make_config(images, tmp_path, num_workers=iteration % 2, **EVERYTHING), quiet / f'iter_{iteration}.pth')
    wanted = read(quiet)
    assert_same(read(tmp_path), wanted)
    assert {'ema_state_dict', 'param_schedulers'} < set(wanted) and wanted['optimizer']['loss_scaler']['scale'] > 65536
    first = read(quiet, 1)['state_dict']
    assert not any(torch.equal(first[name], value) for name, value in wanted['state_dict'].items() if 'bias' in name)


def test_checkpoints_of_epochs_resume_too(images, quiet, tmp_path):
    """A checkpoint that mmengine writes at an epoch's end leads to the bits of the run with one per iteration."""
    options = {**EVERYTHING, 'default_hooks.checkpoint.by_epoch': True}
    train(make_config(images, tmp_path, **options))
    resume(make_config(images, tmp_path / 'again', **EVERYTHING), tmp_path / 'epoch_1.pth')
    assert_same(read(tmp_path / 'again'), read(quiet))


@pytest.mark.parametrize('iteration', (1, 3, 5))
def test_gradients_between_updates_are_found_again(images, tmp_path, iteration):
    """With two iterations an update, a run that is killed between them, once across the end of an epoch, goes on with
    the gradients of the first."""
    options = {**EVERYTHING, 'optim_wrapper.accumulative_counts': 2, 'default_hooks.checkpoint.interval': iteration}
    train(make_config(images, tmp_path / 'quiet', **options))
    options['default_hooks.checkpoint.interval'] = 1
    resume(make_config(images, tmp_path / 'again', **options), tmp_path / 'quiet' / f'iter_{iteration}.pth')
    assert_same(read(tmp_path / 'again'), read(tmp_path / 'quiet'))


def test_a_seed_that_was_drawn_is_kept(images, tmp_path):
    """A run without a seed in its config resumes with the order, crops and masks of the seed that it once drew."""
    options = {**EVERYTHING, 'randomness': dict(seed=None)}
    train(make_config(images, tmp_path / 'quiet', **options))
    resume(make_config(images, tmp_path / 'again', **options), tmp_path / 'quiet' / 'iter_2.pth')
    assert_same(read(tmp_path / 'again'), read(tmp_path / 'quiet'))


def test_seen_images_are_not_read_again(images, quiet, tmp_path, monkeypatch):
    """A resumed run reads the images behind the checkpoint alone, in the order of the quiet run."""
    asked = []
    original = UnlabelledImages.__getitem__
    monkeypatch.setattr(UnlabelledImages, '__getitem__', lambda self, draw: asked.append(draw) or original(self, draw))
    resume(make_config(images, tmp_path, **EVERYTHING), quiet / 'iter_2.pth')
    wanted = []
    for epoch in range(2):
        sampler = DeterministicSampler(range(14), seed=0, drop_last=True)
        sampler.set_epoch(epoch)
        wanted += list(sampler)[: 3 * BATCH]
    assert asked == wanted[2 * BATCH :]


def test_another_batch_is_refused(images, quiet, tmp_path):
    """A resumed run with another number of images per iteration is rejected with both numbers and the way out."""
    with pytest.raises(ValueError, match='batch_size=2 in 1 processes makes 2 images .* has 4: set it to 4, or .*lo'):
        resume(make_config(images, tmp_path, batch=2, **EVERYTHING), quiet / 'iter_2.pth')


def test_loaders_that_cannot_resume_are_refused(images, tmp_path):
    """A sampler that cannot skip, and a batch larger than the data set, are refused before the first step."""
    with pytest.raises(ValueError, match="DefaultSampler cannot skip images: use dict.type='DeterministicSampler'."):
        cfg = make_config(images, tmp_path)
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        train(cfg)
    with pytest.raises(ValueError, match='batch_size=15 is more than the 14 images'):
        train(make_config(images, tmp_path, batch=15))


def train_in_two(images, folder, checkpoint):
    """Two quiet runs of half the batch, the second one from a checkpoint of a single process."""
    train(make_config(images, folder / 'two', batch=BATCH // 2, **DOUBLE))
    resume(make_config(images, folder / 'two_from_one', batch=BATCH // 2, **DOUBLE), checkpoint)


@pytest.mark.slow
def test_resumed_with_other_processes_is_the_quiet_run(images, tmp_path):
    """Two processes with half the batch, from the start or from a checkpoint of one process in mid-epoch, and one
    process from a checkpoint of the two, all end in the weights of one process to 1e-6, in float64."""
    train(make_config(images, tmp_path / 'one', **DOUBLE))
    in_processes(train_in_two, images, tmp_path, tmp_path / 'one' / 'iter_2.pth', folder=tmp_path)
    resume(make_config(images, tmp_path / 'one_from_two', **DOUBLE), tmp_path / 'two' / 'iter_4.pth')
    wanted = read(tmp_path / 'one')
    for run in ('two', 'two_from_one', 'one_from_two'):
        assert_same(read(tmp_path / run), wanted, tolerance=1e-6)
