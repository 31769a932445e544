"""Small FCMAE runs in processes of their own, which tests kill, starve and hang.

Processes are forked from a clean server that has imported the package once, so that starting one takes no time.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from small_models import NARROW

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.runner import build_runner

CONFIG = Path(__file__).parents[2] / 'configs' / 'fcmae' / 'fcmae_convnextv2-a_1xb64-800e_folder.py'
IMAGES, BATCH = 12, 4
PER_EPOCH = IMAGES // BATCH


@TRANSFORMS.register_module(force=True)
class Dawdle:
    """A transform that takes its time, or kills its process at an image, or fills one with NaN."""

    def __init__(self, seconds=0.0, kill_at='', poison=''):
        self.seconds, self.kill_at, self.poison = seconds, kill_at, poison

    def __call__(self, results):
        time.sleep(self.seconds)
        if self.kill_at and results['img_path'].endswith(self.kill_at):
            os.kill(os.getpid(), 9)
        if self.poison and results['img_path'].endswith(self.poison):
            results['img'] = np.full(results['img'].shape, np.nan, np.float32)
        return results


def write_images(folder):
    generator = np.random.default_rng(0)
    Path(folder).mkdir(parents=True)
    for number in range(IMAGES):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(f'{folder}/{number:02}.png')
    return str(folder)


def make_config(images, work_dir, epochs=4, dawdle=None, **options):
    """The shipped folder config with a narrow model and a checkpoint after each iteration."""
    cfg = Config.fromfile(str(CONFIG), format_python_code=False)
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'train_cfg.max_epochs': epochs,
            'train_dataloader.batch_size': BATCH,
            'train_dataloader.dataset.data_root': images,
            'train_dataloader.dataset.pipeline.1.scale': 64,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'model.neck.channels': 8,
            'default_hooks.checkpoint': dict(interval=1, by_epoch=False, max_keep_ckpts=2),
            'optim_wrapper.type': 'OptimWrapper',
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'param_scheduler.1.end': epochs,
            'visualizer.name': f'run{time.monotonic_ns()}',
            'experiment_name': f'run{time.monotonic_ns()}',  # runs that begin in the same second share a message hub
            'env_cfg.dist_cfg.backend': 'gloo',
            'launcher': 'none',
            **options,
        }
    )
    cfg.model.backbone.arch = NARROW
    cfg.custom_hooks = []
    if dawdle:
        cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Dawdle', **dawdle))
    return cfg


def train(cfg, resume=False):
    """Train as ``tools/train.py`` does, its ending included."""
    cfg.resume = resume
    run_tool(lambda args: build_runner(cfg, whole=True).train(), type('Arguments', (), dict(traceback=False)))


def start(function, *arguments, log):
    """Start ``function(*arguments)`` in a process of its own, with what it prints in a file."""
    context = torch.multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmconvnextv2.pretrain', 'mmconvnextv2.commands.train'])
    process = context.Process(target=_work, args=(function, arguments, str(log)))
    process.start()
    return process


def _work(function, arguments, log):
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(log, 'w', buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    function(*arguments)


def wait_for(condition, process, seconds=60):
    """Wait until a condition holds, while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, 'the run ended before it could be disturbed'
        time.sleep(0.002)


def last(work_dir):
    """Read the checkpoint that ``--resume`` would take."""
    return load_file((Path(work_dir) / 'last_checkpoint').read_text())


def assert_same_weights(one, other):
    assert one['meta']['iter'] == other['meta']['iter']
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for name, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][name]), name
    assert one['optimizer']['state'].keys() == other['optimizer']['state'].keys()
    for index, moments in one['optimizer']['state'].items():
        assert torch.equal(moments['exp_avg_sq'], other['optimizer']['state'][index]['exp_avg_sq'])
