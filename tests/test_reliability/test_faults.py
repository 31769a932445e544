"""Real faults on real runs: what is left on the disk, and what is said."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.structures import DataSample
from real_runs import PER_EPOCH, assert_same_weights, last, make_config, start, train, wait_for, write_images

from mmconvnextv2 import FiniteLossHook, PreemptionHook
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.engine.hooks import runtime_info
from mmconvnextv2.engine.hooks.checkpoint import PART, AtomicBackend, VerifiedCheckpointHook
from mmconvnextv2.pretrain import FCMAE


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture(scope='module')
def quiet(images, tmp_path_factory):
    """The last checkpoint of an undisturbed run."""
    folder = tmp_path_factory.mktemp('quiet')
    train(make_config(images, folder))
    return last(folder)


def put_large(path, byte):
    AtomicBackend().put(bytes([byte]) * 2**27, path)


def test_kill_while_writing_leaves_the_file_before(tmp_path):
    """SIGKILL in the middle of writing leaves the earlier content whole, and the next writing succeeds."""
    path = tmp_path / 'a.pth'
    AtomicBackend().put(b'before', path)
    process = start(put_large, str(path), 7, log=tmp_path / 'log')
    wait_for((tmp_path / f'a.pth{PART}').exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.read_bytes() == b'before' and (tmp_path / f'a.pth{PART}').exists()
    AtomicBackend().put(b'after', path)
    assert path.read_bytes() == b'after' and sorted(tmp_path.iterdir()) == [path, tmp_path / 'log']


def test_killed_runs_resume_to_the_quiet_weights(images, quiet, tmp_path):
    """A run that is killed by SIGKILL at several moments always has a loadable last checkpoint, never more files than
    it should keep and one, and ends with the bits of the quiet run."""
    for number in range(4):
        process = start(
            train, make_config(images, tmp_path, dawdle=dict(seconds=0.01)), number > 0, log=tmp_path / 'log'
        )
        begun = number * 2 + 2
        wait_for(lambda: any(tmp_path.glob(f'iter_{begun}.pth*')), process)
        time.sleep(0.01 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert begun - 1 <= last(tmp_path)['meta']['iter'] <= begun + 2
    train(make_config(images, tmp_path), True)
    assert_same_weights(last(tmp_path), quiet)
    assert len(list(tmp_path.glob('*.pth'))) == 2 and not list(tmp_path.glob(f'*{PART}'))


def train_until_a_removal(cfg):
    """Die where the first outdated file would go."""
    VerifiedCheckpointHook._remove = lambda hook, paths: paths and os.kill(os.getpid(), signal.SIGKILL)
    train(cfg)


def test_file_that_a_killed_run_had_yet_to_remove(images, quiet, tmp_path):
    """A run killed between the newest checkpoint and the removal of the oldest leaves no file behind when resumed."""
    process = start(train_until_a_removal, make_config(images, tmp_path), log=tmp_path / 'log')
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name for path in tmp_path.glob('*.pth')} == {'iter_1.pth', 'iter_2.pth', 'iter_3.pth'}
    train(make_config(images, tmp_path), True)
    assert {path.name for path in tmp_path.glob('*.pth')} == {'iter_11.pth', 'iter_12.pth'}
    assert_same_weights(last(tmp_path), quiet)


@pytest.mark.parametrize('workers', (0, 2))
def test_sigterm_saves_and_ends(images, quiet, tmp_path, workers):
    """SIGTERM to every process of the run, workers too, saves within two seconds and ends with status 143 and one line;
    the resumed run ends with the bits of the quiet one."""
    options = {
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
        'default_hooks.checkpoint.interval': 100,
    }
    process = start(train, make_config(images, tmp_path, dawdle=dict(seconds=0.05), **options), log=tmp_path / 'log')
    wait_for(lambda: any(tmp_path.rglob('scalars.json')) or 'Checkpoints will' in read(tmp_path), process)
    time.sleep(0.5)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 143, read(tmp_path)
    assert time.monotonic() - begin < 10
    assert 'interrupted.pth after iteration' in read(tmp_path) and 'Traceback' not in read(tmp_path)
    assert 0 < last(tmp_path)['meta']['iter'] < 4 * PER_EPOCH
    process = start(train, make_config(images, tmp_path, **options), True, log=tmp_path / 'log')
    process.join(60)  # ends by itself, its persistent workers too
    assert process.exitcode == 0, read(tmp_path)
    assert_same_weights(last(tmp_path), quiet)


OPTIONS_OF_TWO = {'train_dataloader.batch_size': 2, 'default_hooks.preemption.interval': 2}


def read(folder):
    return (folder / 'log').read_text() if (folder / 'log').exists() else ''


@contextmanager
def small_disk(folder, kind, size):
    """A real file system of a few kilobytes, or a limit on the size of files."""
    folder.mkdir()
    if kind == 'limit':
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    elif subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder]).returncode:
        pytest.skip('mounting a file system needs root')
    try:
        yield
    finally:
        if kind == 'limit':
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        else:
            subprocess.run(['umount', '-l', folder], check=True)


@pytest.mark.parametrize('kind', ('file system', 'limit'))
def test_full_disk_is_one_line_and_keeps_the_last_checkpoint(images, tmp_path, kind):
    """When the disk is full the run ends with one line, and what last_checkpoint points to can be loaded."""
    whole = tmp_path / 'whole'
    train(make_config(images, whole, epochs=2))
    size = max(path.stat().st_size for path in whole.glob('*.pth'))
    with small_disk(tmp_path / 'disk', kind, int(size * (2.5 if kind == 'file system' else 0.9))):
        if kind == 'limit':
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            train(make_config(images, tmp_path / 'disk', epochs=2))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * 0.9), resource.RLIM_INFINITY))
        with pytest.raises(SystemExit) as stop:
            train(
                make_config(images, tmp_path / 'disk', **{'default_hooks.checkpoint.max_keep_ckpts': 5}),
                kind == 'limit',
            )
        assert stop.value.code.startswith('error: cannot write') and 'free some space' in stop.value.code
        assert '\n' not in stop.value.code
        assert last(tmp_path / 'disk')['state_dict'] and not list((tmp_path / 'disk').glob(f'*{PART}'))


def test_killed_worker_is_one_line(images, tmp_path):
    """A data loader's worker that is killed ends the run with one line, and the last checkpoint can be loaded."""
    options = {'train_dataloader.num_workers': 1}
    with pytest.raises(SystemExit, match='a data worker died.*num_workers.*--resume'):
        train(make_config(images, tmp_path, dawdle=dict(kill_at='05.png', seconds=0.1), **options))


@pytest.mark.parametrize('late', [False, True])
def test_not_a_number_stops_and_names_the_images(images, tmp_path, late, request):
    """An image of NaN stops the run with its name before anything of it is saved."""
    if late:
        request.getfixturevalue('deferred')
    with pytest.raises(SystemExit, match='stopped at iteration.*loss nan .*05.png.*max_skips'):
        train(make_config(images, tmp_path, dawdle=dict(poison='05.png')))
    if (tmp_path / 'last_checkpoint').exists():
        assert all(value.isfinite().all() for value in last(tmp_path)['state_dict'].values())


@pytest.fixture
def deferred(monkeypatch):
    """Values are read as late as those of a GPU are."""
    monkeypatch.setattr(runtime_info, 'on_gpu', lambda values: True)


def test_losses_read_late_are_the_same(images, tmp_path, monkeypatch):
    """Losses that stay on the device until they are logged are logged as those read at once are, and so are those of a
    checkpoint between two logs; each is read once."""
    read, whole, fetch = [], [], runtime_info.fetch
    options = {  # epochs of 3 iterations
        'default_hooks.logger.interval': 2,
        'default_hooks.checkpoint.interval': 4,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'default_hooks.finite_loss': dict(type='EmptyCacheHook'),  # FiniteLossHook brings histories up to date, too
    }
    for place, late in enumerate((True, False)):
        monkeypatch.setattr(runtime_info, 'on_gpu', lambda values, late=late: late)
        monkeypatch.setattr(runtime_info, 'fetch', lambda values: read.append(len(values)) or fetch(values))
        train(make_config(images, tmp_path / str(place), 3, **options))
        [log] = (tmp_path / str(place)).glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        hubs = [load_file(str(tmp_path / str(place) / f'iter_{one}.pth'))['message_hub'] for one in (4, 8)]
        histories = [hub['log_scalars']['train/loss']['history'].tolist() for hub in hubs]
        whole.append((histories, [(line['iter'], line['loss']) for line in lines if 'loss' in line]))
    assert whole[0] == whole[1] and [len(one) for one in whole[0][0]] == [4, 8]
    assert read == [2, 1, 1, 1, 1, 2, 1] + [1] * 9


@HOOKS.register_module(force=True)
class SaveAtAnyTime(Hook):
    """A hook of a user that saves after each iteration."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.save_checkpoint(runner.work_dir, f'own_{runner.iter + 1}.pth')


def test_checkpoints_saved_at_any_time(images, tmp_path, deferred):
    """Losses that are not logged for long are read before any checkpoint: none is saved after a bad update, and each
    has the whole history."""
    options = {'default_hooks.checkpoint.interval': 100, 'default_hooks.logger.interval': 100}
    cfg = make_config(images, tmp_path, dawdle=dict(poison='05.png'), **options)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='SaveAtAnyTime')]
    with pytest.raises(SystemExit, match=r'stopped at iteration (\d)') as stopped:
        train(cfg)
    bad = int(re.search(r'iteration (\d)', str(stopped.value))[1])
    saved = [load_file(str(path)) for path in sorted(tmp_path.glob('own_*.pth'))]
    for number, content in enumerate(saved, start=1):
        assert all(value.isfinite().all() for value in content['state_dict'].values())
        assert len(content['message_hub']['log_scalars']['train/loss']['history']) == number
    assert len(saved) == bad - 1 < PER_EPOCH - 1  # not read at the end of an epoch


@pytest.mark.parametrize('fused, late', [(True, False), (True, True), (False, False), (False, True)])
def test_skipped_updates_change_nothing(images, tmp_path, fused, late, request):
    """With ``max_skips`` the weights and moments after a bad update are, bit for bit, those before it, and one bad
    update more than allowed stops the run, a resumed one too."""
    if late:
        request.getfixturevalue('deferred')
    options = {
        'default_hooks.finite_loss.max_skips': 2,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'optim_wrapper.optimizer.fused': fused,
    }
    with pytest.raises(SystemExit, match='stopped at iteration'):
        train(make_config(images, tmp_path, dawdle=dict(poison='05.png'), **options))
    checkpoints = [
        load_file(str(path)) for path in sorted(tmp_path.glob('iter_*.pth'), key=lambda path: int(path.stem[5:]))
    ]
    equal = [
        torch.equal(one['state_dict']['head.pred.weight'], other['state_dict']['head.pred.weight'])
        and all(
            torch.equal(value, other['optimizer']['state'][0][name])
            for name, value in one['optimizer']['state'][0].items()
        )  # moments, number of steps
        for one, other in zip(checkpoints, checkpoints[1:])
    ]
    skips = [one['message_hub']['runtime_info'].get('num_skipped_updates', 0) for one in checkpoints]
    assert equal == [before != after for before, after in zip(skips, skips[1:])] and skips[-1] == 2
    with pytest.raises(SystemExit, match='stopped at iteration'):
        train(make_config(images, tmp_path, dawdle=dict(poison='05.png'), **options), True)


def train_in_two(rank, images, work_dir, meeting, seconds):
    """Train in one of two processes, each of which takes its own time per image."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{meeting}', rank=rank, world_size=2, timeout=timedelta(seconds=3)
    )
    cfg = make_config(images, work_dir, dawdle=dict(seconds=seconds), **OPTIONS_OF_TWO)
    cfg.merge_from_dict(
        dict(
            launcher='pytorch',
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
        )
    )
    train(cfg)


def test_hung_process_is_noticed(images, tmp_path):
    """When one process hangs, the other ends within the group's time limit and says so in one line."""
    processes = [
        start(
            train_in_two,
            rank,
            images,
            tmp_path / 'work',
            tmp_path / 'meeting',
            rank * 600.0,
            log=tmp_path / f'log{rank}',
        )
        for rank in (0, 1)
    ]
    processes[0].join(60)
    said = (tmp_path / 'log0').read_text()
    processes[1].kill()
    assert processes[0].exitcode == 1, said
    assert 'error: process 0 waited in vain for another process' in said and 'env_cfg.dist_cfg.timeout' in said


def test_sigterm_to_one_of_two_ends_both(images, tmp_path):
    """SIGTERM to one process of two makes both end with status 143 at the same iteration, and saves once."""
    processes = [
        start(train_in_two, rank, images, tmp_path / 'work', tmp_path / 'meeting', 0.05, log=tmp_path / f'log{rank}')
        for rank in (0, 1)
    ]
    wait_for(lambda: any((tmp_path / 'work').glob('iter_*.pth')), processes[1])
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [143, 143], (tmp_path / 'log0').read_text()[-2000:]
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith('interrupted.pth')
    assert last(tmp_path / 'work')['meta']['iter'] % 2 == 0


@pytest.mark.parametrize('early', [True, False])
def test_forked_processes_end_on_sigterm(early):
    """A process that a metric forks during training ends when its parent terminates it, as multiprocessing.Pool does,
    even before it first runs, and the training is not asked to stop."""
    hook, cores, before = PreemptionHook(), os.sched_getaffinity(0), signal.getsignal(signal.SIGTERM)
    hook.before_run(SimpleNamespace(_train_loop=object.__new__(IterBasedTrainLoop)))
    ready = get_context('fork').Event()
    try:
        assert signal.getsignal(signal.SIGTERM) == hook._request_stop
        os.sched_setaffinity(0, {min(cores)})  # on one core the new process has to wait for this one
        for _ in range(10):
            ready.clear()
            process = get_context('fork').Process(target=set_and_sleep, args=(ready,), daemon=True)
            process.start()
            assert early or ready.wait(60)
            process.terminate()
            process.join(30)
            assert process.exitcode == -signal.SIGTERM
        assert not hook._stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)  # which this process still postpones
        assert hook._stop_requested()
    finally:
        os.sched_setaffinity(0, cores)
        hook.after_run(None)
    assert signal.getsignal(signal.SIGTERM) == before


def set_and_sleep(ready):
    ready.set()
    time.sleep(600)


def test_hooks_refuse_bad_arguments():
    """Unknown signals, intervals and counts are named."""
    with pytest.raises(ValueError, match="signals=.*'SIGNOPE'"):
        PreemptionHook(signals=('SIGNOPE',))
    with pytest.raises(ValueError, match='interval=0'):
        PreemptionHook(interval=0)
    with pytest.raises(ValueError, match='max_skips=-1'):
        FiniteLossHook(max_skips=-1)


class SteepModel(BaseModel):
    """A model whose loss, the sum of the square roots of weight times image, is finite; its gradient at 0 is not."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=(self.weight * torch.stack(inputs)).sqrt().sum())


def test_images_of_a_bad_gradient_are_named(tmp_path):
    """A finite loss with a gradient that is not names the images since the last update, those of accumulated batches
    too and no earlier ones, and the key that skips such updates."""
    values = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    samples = [
        dict(inputs=torch.tensor(value), data_samples=DataSample(metainfo=dict(img_path=f'{number}.png')))
        for number, value in enumerate(values)
    ]
    runner = Runner(
        SteepModel(),
        str(tmp_path),
        train_dataloader=dict(
            dataset=samples, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0), accumulative_counts=2),
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=[FiniteLossHook()],
        experiment_name=tmp_path.name,
    )
    named = 'gradients that are not finite in process 0 of 4.png, 5.png, 6.png, 7.png. '
    with pytest.raises(RuntimeError, match=f'stopped at iteration 4: {named}.*default_hooks.finite_loss.max_skips'):
        runner.train()


@pytest.mark.parametrize('execution', ['packed', 'masked'])
def test_signals_do_not_disturb_gradients(execution):
    """Signals that arrive thousands of times during forward and backward passes leave every gradient bit for bit as it
    is without them: the handler only notes the time."""
    count = [0]

    def handle(number, frame):
        PreemptionHook()._request_stop(number, frame)  # one that heard no signal before
        count[0] += 1

    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch='atto', out_indices=(3,), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=64),
        head=dict(type='FCMAEHead'),
        execution=execution,
    )
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    images, cells = torch.randn(2, 3, 128, 128), torch.stack([torch.randperm(16)[:6].sort().values for _ in range(2)])
    samples = [DataSample(metainfo=dict(visible_cells=one.numpy())) for one in cells]

    def gradients():
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = model.loss(images, samples)['loss']
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        found = [gradients() for _ in range(5)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count[0] > 500
    for each in found:
        assert all(torch.equal(one, other) for one, other in zip(each, expected))
