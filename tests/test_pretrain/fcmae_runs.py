"""Small FCMAE runs through mmengine's runners, in this process or in several."""

import os
import tempfile

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image
from small_models import NARROW

from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints, load_file
from mmconvnextv2.pretrain import FCMAE

CONFIG = 'configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'
NUM_IMAGES, BATCH, EPOCHS = 14, 4, 2
ITERATIONS = EPOCHS * (NUM_IMAGES // BATCH)


@MODELS.register_module(force=True)
class DoubleFCMAE(FCMAE):
    """FCMAE in float64, for sums that are exact to 1e-9 whatever their order."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.double()

    def loss(self, inputs, data_samples):
        return super().loss(inputs.double(), data_samples)


def write_images(folder, num_images=NUM_IMAGES):
    generator = np.random.default_rng(0)
    os.makedirs(folder, exist_ok=True)
    for number in range(num_images):
        pixels = generator.integers(0, 255, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 80), Image.BICUBIC).save(f'{folder}/{number:02}.png')
    return str(folder)


def make_config(folder, work_dir, batch=BATCH, num_workers=0, **options):
    """The shipped folder config with a narrow model, six iterations and a checkpoint after each."""
    cfg = Config.fromfile(CONFIG, format_python_code=False)
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'train_cfg.max_epochs': EPOCHS,
            'train_dataloader.batch_size': batch,
            'train_dataloader.dataset.data_root': folder,
            'train_dataloader.dataset.pipeline.1.scale': 64,
            'train_dataloader.num_workers': num_workers,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'model.neck.channels': 12,
            'default_hooks.checkpoint': dict(interval=1, by_epoch=False, max_keep_ckpts=-1),
            'optim_wrapper.type': 'OptimWrapper',
            'optim_wrapper.optimizer.lr': 0.01,
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'param_scheduler.1.end': EPOCHS,
            'env_cfg.dist_cfg.backend': 'gloo',
            'log_level': 'ERROR',
            **options,
        }
    )
    cfg.model.backbone.arch = NARROW
    cfg.custom_hooks = options.get('custom_hooks', [])
    if is_distributed():  # what tools/train.py adds to the config on a CPU
        cfg.merge_from_dict(
            dict(
                launcher='pytorch',
                model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
            )
        )
    return cfg


def train(cfg):
    """Train as tools/train.py does, without its command line."""
    allow_mmengine_checkpoints()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()
    return runner


def resume(cfg, checkpoint):
    """Go on from a checkpoint."""
    cfg.merge_from_dict(dict(resume=True, load_from=str(checkpoint)))
    return train(cfg)


def read(work_dir, iteration=ITERATIONS):
    """Read the checkpoint of an iteration."""
    return load_file(f'{work_dir}/iter_{iteration}.pth')


def tensors_of(content, prefix=''):
    """Flatten what a checkpoint holds into a dict of tensors and numbers, without logs and times."""
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    else:
        return {prefix: content} if isinstance(content, (torch.Tensor, int, float)) else {}
    flat = {}
    for name, value in items:
        if name not in ('message_hub', 'meta'):
            flat.update(tensors_of(value, f'{prefix}/{name}'))
    return flat


def assert_same(content, wanted, tolerance=0.0):
    """Compare weights, optimizer, schedulers, EMA and scaler of two checkpoints; tolerance 0 is bitwise."""
    content, wanted = tensors_of(content), tensors_of(wanted)
    assert content.keys() == wanted.keys()
    for name, value in wanted.items():
        one, other = (
            torch.as_tensor(item, dtype=getattr(value, 'dtype', torch.float64)) for item in (content[name], value)
        )
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda text: f'{name}: {text}')


def in_processes(function, *arguments, folder, num_processes=2):
    """Run ``function(*arguments)`` in processes that know each other through gloo.

    They are forked from a clean server that has imported the package once.
    """
    torch.multiprocessing.get_context('forkserver').set_forkserver_preload(['mmconvnextv2.pretrain'])
    meeting = f'{tempfile.mkdtemp(dir=folder)}/point'
    torch.multiprocessing.start_processes(
        _join, (function, arguments, meeting, num_processes), num_processes, start_method='forkserver'
    )


def _join(rank, function, arguments, meeting, num_processes):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))
    torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=num_processes)
    function(*arguments)
    torch.distributed.destroy_process_group()
