"""Building mmengine's runner from a config, with support for CPU training and checks of checkpoints."""

import os
import subprocess
from datetime import timedelta

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoint.load import allow_mmengine_checkpoints
from ..engine.devices import check_gpu
from ..engine.hooks import MatchingWeightsHook, ResumeHook
from ..engine.runner import NamingRunner


def revert_sync_batch_norm(cfg: Config) -> None:
    """Replace SyncBN with BN on the CPU and under gloo, where it cannot run; the change is logged."""
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if torch.cuda.is_available() and backend != 'gloo':
        return
    replaced = _replace_type(cfg.model, 'SyncBN', 'BN')
    if replaced:
        print_log(f'SyncBN needs CUDA and NCCL: {replaced} norm configs use BN instead', logger='current')
    if cfg.launcher != 'none' and backend == 'nccl':
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        print_log('no CUDA device: env_cfg.dist_cfg.backend is set to gloo', logger='current')
    if cfg.launcher in ('pytorch', 'slurm') and not torch.cuda.is_available():
        _join_on_cpu(cfg)


def _join_on_cpu(cfg: Config) -> None:
    """Initialise the process group and set a model wrapper without devices, since mmengine requires CUDA for both."""
    if not torch.distributed.is_initialized():
        if cfg.launcher == 'slurm':
            _read_slurm()
        seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=seconds))
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.setdefault('model_wrapper_cfg', ConfigDict(wrapper))


def _read_slurm() -> None:
    """Set torch.distributed's variables from Slurm's, as mmengine does on a GPU; the first host is the rendezvous."""
    for name, given in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[name] = os.environ[f'SLURM_{given}']
    if 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.check_output(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True)
        os.environ['MASTER_ADDR'] = hosts.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')


def _replace_type(node, old: str, new: str) -> int:
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(child, old, new) for child in node)
    if not isinstance(node, dict):
        return 0
    hit = node.get('type') == old
    if hit:
        node['type'] = new
    return int(hit) + sum(_replace_type(child, old, new) for child in node.values())


def build_runner(cfg: Config, whole: bool) -> Runner:
    """Build the runner of a config.

    Args:
        cfg (Config): Config of the run.
        whole (bool): Whether a checkpoint must have every parameter, see :class:`MatchingWeightsHook`.
    """
    check_gpu()
    revert_sync_batch_norm(cfg)
    allow_mmengine_checkpoints()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else NamingRunner.from_cfg(cfg)
    runner.register_hook(MatchingWeightsHook(whole=whole), priority='LOWEST')
    runner.register_hook(ResumeHook(), priority='LOWEST')
    return runner
