"""A tiny data set, narrow models, and the tools run in this process or as a command."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import NARROW

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import parse_test_args, test
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

ROOT = Path(__file__).parents[2]
SCALARS = 'num_workers=0 persistent_workers=False'.split()
WIDTHS = list(NARROW['channels'])
BACKBONE = f'backbone=dict(arch=dict(_delete_=True, **{NARROW}))'
MODELS = {
    'fcmae': f'model = dict({BACKBONE}, neck=dict(channels=8))',
    'mask-rcnn': f'model = dict({BACKBONE}, neck=dict(in_channels={WIDTHS}))',
    'upernet': f'model = dict({BACKBONE}, decode_head=dict(in_channels={WIDTHS}, channels=8), '
    'auxiliary_head=dict(in_channels=8, channels=8))',
}


class Tools:
    """Run ``tools/train.py`` and ``tools/test.py`` on a task of the quickstart, made small by overrides."""

    arch = NARROW

    def __init__(self, data, configs):
        self.data, self.configs = data, {}
        for task, narrow in MODELS.items():
            self.configs[task] = str(configs / f'{task}.py')
            base = ROOT / 'configs' / 'quickstart' / f'{task}.py'
            (configs / f'{task}.py').write_text(f"_base_ = '{base}'\n{narrow}\n")

    def options(self, task, *more):
        """Return overrides: one iteration per epoch, plain start, no worker processes."""
        loaders = ['train'] if task == 'fcmae' else ['train', 'val', 'test']
        common = [f'{loader}_dataloader.{scalar}' for loader in loaders for scalar in SCALARS]
        common += [f'{loader}_dataloader.batch_size=2' for loader in loaders]
        if task != 'fcmae' and 'init_cfg' not in ' '.join(more):
            common.append('model.backbone.init_cfg=None')
        return [*common, *getattr(self, task.replace('-', '_'))(loaders), *more]

    def roots(self, loaders, folder):
        return [f'{loader}_dataloader.dataset.data_root={self.data / folder}' for loader in loaders]

    def mask_rcnn(self, loaders):
        annotations = self.data / 'coco' / 'annotations' / 'instances_val2017.json'
        return [
            *self.roots(loaders, 'coco'),
            f'val_evaluator.ann_file={annotations}',
            'train_cfg.max_epochs=1',
            f'test_evaluator.ann_file={annotations}',
            'train_cfg.val_interval=1',
            'default_hooks.checkpoint.interval=1',
            'model.test_cfg.rcnn.score_thr=0.0',
        ]

    def upernet(self, loaders):
        return [
            *self.roots(loaders, 'ade'),
            'train_cfg.max_iters=1',
            'train_cfg.val_interval=1',
            'default_hooks.checkpoint.interval=1',
            'default_hooks.logger.interval=1',
        ]

    def fcmae(self, loaders):
        return [
            *self.roots(loaders, 'unlabelled'),
            'train_cfg.max_epochs=1',
            'default_hooks.checkpoint.interval=1',
            'train_dataloader.dataset.pipeline.1.scale=64',
            'default_hooks.logger.interval=1',
        ]

    def train(self, task, work_dir, *options, arguments=()):
        """Train in this process; mmengine keeps visualizers by name, so each run gets one of its own."""
        run_tool(
            train,
            parse_train_args(
                [
                    self.configs[task],
                    '--work-dir',
                    str(work_dir),
                    *arguments,
                    '--cfg-options',
                    f'visualizer.name=run{time.monotonic_ns()}',
                    *self.options(task, *options),
                ]
            ),
        )

    def test(self, task, checkpoint, work_dir, *options, arguments=()):
        run_tool(
            test,
            parse_test_args(
                [
                    self.configs[task],
                    str(checkpoint),
                    '--work-dir',
                    str(work_dir),
                    *arguments,
                    '--cfg-options',
                    f'visualizer.name=run{time.monotonic_ns()}',
                    *self.options(task, *options),
                ]
            ),
        )

    def last(self, work_dir, task):
        """Return the checkpoint of a run of one iteration."""
        return work_dir / ('iter_1.pth' if task == 'upernet' else 'epoch_1.pth')

    def command(self, tool, task, work_dir, *options, arguments=()):
        """Run a tool as a user does."""
        command = [
            sys.executable,
            f'tools/{tool}.py',
            self.configs[task],
            *arguments,
            '--work-dir',
            str(work_dir),
            '--cfg-options',
            *self.options(task, *options),
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('embedded') / 'data'
    make_embedded(str(folder), EmbeddedSpec(unlabelled=4, train=4, val=2, size=64))
    return folder


@pytest.fixture(scope='session')
def tools(data, tmp_path_factory):
    return Tools(data, tmp_path_factory.mktemp('configs'))


@pytest.fixture(scope='session')
def trained(tools, tmp_path_factory):
    """Return a function that gives the work folder of one iteration of training, trained once a session."""
    folders = {}

    def train_once(task):
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task)
            tools.train(task, folders[task], 'default_hooks.logger.interval=1')
        return folders[task]

    return train_once
