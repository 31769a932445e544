"""From command-line arguments to a runner, for MMDetection, MMSegmentation and MMPretrain configs alike.

Follows the arguments of OpenMMLab's ``tools/train.py`` and ``tools/test.py``. Differs from them in checking the data
and the class count before a long start, in reading checkpoints without running them, and in replacing SyncBN
where it cannot run.
"""
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from copy import deepcopy
from datetime import timedelta
from importlib import import_module
from typing import Optional, Sequence

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from .checkpoint import MatchingWeightsHook, skip_initial_weights_on_resume
from .data_checks import check_data, settle_data
from .errors import UserError
from .folder_lock import lock_folder
from .label_checks import inner_datasets, reads_annotations
from .mmcv_operators import serving_operators
from .pipelines import NamingRunner
from .recipes import read_config
from .resume_changes import ResumeHook
from .safe_loading import allow_mmengine_checkpoints
from .train_options import add_train_options, apply_train_options
from .typos import check_overrides

OURS = dict(mmdet=('datasets.coco', 'mixed_precision'), mmseg=('datasets.labels', ))
VISUALIZATION_HOOKS = dict(
    mmdet=dict(type='DetVisualizationHook'),
    mmpretrain=dict(type='VisualizationHook'),
    mmseg=dict(type='SegVisualizationHook'))


def _add_common_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default work_dirs/CONFIG_NAME')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value ...')
    parser.add_argument('--skip-data-checks', action='store_true', help='start without reading annotations and labels')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed')
    parser.add_argument('--traceback', action='store_true', help='show where in the code a mistake was found')


def parse_train_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse the arguments of ``tools/train.py``."""
    parser = ArgumentParser(
        description='Train a model.',
        epilog='Example: python tools/train.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py --resume')
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', nargs='?', const='auto', help='a checkpoint, or nothing for the latest of work-dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bf16)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_train_options(parser)
    _add_common_arguments(parser)
    return parser.parse_args(argv)


def parse_test_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse the arguments of ``tools/test.py``."""
    parser = ArgumentParser(
        description='Evaluate a checkpoint.',
        epilog='Example: python tools/test.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py a.pth --tta')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file for the predictions, .pkl or .pickle')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a shown picture stays')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation of the config')
    _add_common_arguments(parser)
    return parser.parse_args(argv)


def load_config(args: Namespace) -> Config:
    """Read the config, apply the overrides and settle the work folder.

    Raises:
        ValueError: If the file does not exist, or ``default_scope`` is not installed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    check_overrides(cfg, args.cfg_options)
    if args.cfg_options:
        cfg.merge_from_dict({key: whole_path(value) for key, value in args.cfg_options.items()})
    name = os.path.splitext(os.path.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    settle_data(cfg)
    import_scope(cfg)
    return cfg


def whole_path(value: object) -> object:
    """Return a path with commas, which ``--cfg-options`` takes for a list, as it was; any other value as it is."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        joined = ','.join(value)
        return joined if os.path.exists(joined) else value
    return value


def import_scope(cfg: Config) -> None:
    """Import the package of ``default_scope`` so that its classes are registered.

    Raises:
        ValueError: If the scope is unknown or not installed.
    """
    scope = cfg.get('default_scope')
    if scope not in VISUALIZATION_HOOKS:
        raise UserError(f'default_scope={scope!r} is unknown; allowed are {sorted(VISUALIZATION_HOOKS)}.')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        for name in OURS.get(scope, ()):  # whatever custom_imports says, which a config of one's own may replace
            import_module(f'mmconvnextv2.{name}')
    except ModuleNotFoundError as error:
        raise UserError(f'default_scope={scope!r} needs the package {error.name!r}; install it first.') from error


def revert_sync_batch_norm(cfg: Config) -> None:
    """Replace SyncBN by BN in the model where it cannot run: on the CPU and under gloo. Logged."""
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if torch.cuda.is_available() and backend != 'gloo':
        return
    replaced = _replace_type(cfg.model, 'SyncBN', 'BN')
    if replaced:
        print_log(f'SyncBN needs CUDA and NCCL: {replaced} norm configs use BN instead', logger='current')
    if cfg.launcher != 'none' and backend == 'nccl':
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        print_log('no CUDA device: env_cfg.dist_cfg.backend is gloo', logger='current')
    if cfg.launcher in ('pytorch', 'slurm') and not torch.cuda.is_available():
        _join_on_cpu(cfg)


def _join_on_cpu(cfg: Config) -> None:
    """Join the processes here, and wrap the model without devices: mmengine would ask for CUDA in both places."""
    if not torch.distributed.is_initialized():
        if cfg.launcher == 'slurm':
            _read_slurm()
        seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=seconds))
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                   find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('model_wrapper_cfg', ConfigDict(wrapper))


def _read_slurm() -> None:
    """Tell torch what srun told this task, as mmengine does on a GPU; the first host of the job is where all meet."""
    for name, told in (('RANK', 'PROCID'), ('WORLD_SIZE', 'NTASKS'), ('LOCAL_RANK', 'LOCALID')):
        os.environ[name] = os.environ[f'SLURM_{told}']
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
    """Build the runner that the config asks for.

    Args:
        cfg (Config): The config.
        whole (bool): See :class:`MatchingWeightsHook`.
    """
    revert_sync_batch_norm(cfg)
    allow_mmengine_checkpoints()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else NamingRunner.from_cfg(cfg)
    runner.register_hook(MatchingWeightsHook(whole=whole), priority='LOWEST')
    runner.register_hook(ResumeHook(), priority='LOWEST')
    if 'mmcv._ext' in sys.modules:
        runner.logger.info(f'operators of mmcv: {serving_operators()}')
    return runner


def apply_train_args(cfg: Config, args: Namespace) -> None:
    """Carry ``--amp``, ``--auto-scale-lr``, ``--resume`` and the flags of ``train_options.py`` into the config.

    Raises:
        ValueError: If the config lacks ``auto_scale_lr.base_batch_size``, or the checkpoint does not exist; see also
            :func:`~mmconvnextv2.train_options.apply_train_options`.
    """
    apply_train_options(cfg, args)
    if args.amp:
        cfg.optim_wrapper.type = 'BF16OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config.')
        cfg.auto_scale_lr.enable = True
        # mmengine takes the batch of one forward; an optimizer step sees accumulative_counts of them
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        check_checkpoint(cfg.load_from, '--resume')


def check_checkpoint(path: Optional[str], argument: str) -> None:
    if path and '://' not in path and not os.path.isfile(path):
        raise UserError(f'{argument}={path!r} does not exist; give a checkpoint file or its URL.')


def train(args: Namespace) -> None:
    """Train as ``tools/train.py`` is told to."""
    cfg = load_config(args)
    apply_train_args(cfg, args)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, '--resume' if args.resume else 'load_from')
    check_data(cfg, ('train', 'val') if cfg.get('val_cfg') is not None else ('train', ),
               read_files=not args.skip_data_checks)
    if cfg.launcher == 'none':  # before the runner writes there; of several processes the hook asks the first
        lock_folder(cfg.work_dir)
    runner = build_runner(cfg, whole=bool(cfg.get('resume')))
    _check_length(runner.train_loop.dataloader)
    skip_initial_weights_on_resume(runner)
    runner.train()


def _check_length(loader: DataLoader) -> None:
    """Refuse an epoch without a whole batch, of which mmengine's schedules ask for a positive length."""
    if not isinstance(loader.dataset, IterableDataset) and not len(loader):
        raise UserError(f'train_dataloader: {len(loader.dataset)} pictures make no whole batch of {loader.batch_size} '
                        'in each process, and the last, smaller one is dropped: set train_dataloader.batch_size to '
                        'fewer')


def apply_visualization(cfg: Config, args: Namespace) -> None:
    """Switch on the scope's visualization hook for ``--show`` and ``--show-dir``."""
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault(
        'visualization', ConfigDict(VISUALIZATION_HOOKS[cfg.default_scope]))
    is_classification = cfg.default_scope == 'mmpretrain'
    hook['enable' if is_classification else 'draw'] = True
    hook.update(show=args.show, wait_time=args.wait_time, interval=1)
    if not args.show_dir:
        return
    folder = os.path.abspath(args.show_dir)  # mmdet would put a relative one below the work folder
    if cfg.default_scope == 'mmseg':
        cfg.visualizer['save_dir'] = folder
    else:
        hook['out_dir' if is_classification else 'test_out_dir'] = folder


def apply_tta(cfg: Config) -> None:
    """Wrap the model in the config's ``tta_model`` and test through its ``tta_pipeline``.

    Raises:
        ValueError: If the config has no such keys.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise UserError(f'--tta needs {key} in the config.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    if 'data_preprocessor' in cfg.model.module:  # mmengine would take the one at the top of the config, of the base
        cfg.model.data_preprocessor = deepcopy(cfg.model.module.data_preprocessor)
    for dataset in inner_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = _like_test(deepcopy(cfg.tta_pipeline), dataset.get('pipeline') or [])


def _like_test(tta_pipeline: list, test_pipeline: Sequence[dict]) -> list:
    """Give a TTA pipeline the steps of the test pipeline that read pictures and labels, for data of one's own."""
    reads_labels = [step for step in test_pipeline if reads_annotations(step)]
    if test_pipeline:
        tta_pipeline[0] = deepcopy(test_pipeline[0])
    for step in tta_pipeline:
        branches = step.get('transforms', []) if step['type'] == 'TestTimeAug' else []
        for number, branch in enumerate(branches):
            if reads_labels and len(branch) == 1 and reads_annotations(branch[0]):
                branches[number] = [deepcopy(reads_labels[0])]
    return tta_pipeline


def test(args: Namespace) -> dict:
    """Evaluate as ``tools/test.py`` is told to.

    Returns:
        dict: The metrics.

    Raises:
        ValueError: If the checkpoint does not exist or ``--out`` is no pickle file.
    """
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out={args.out!r} must end in .pkl or .pickle.')
    check_checkpoint(args.checkpoint, 'checkpoint')
    cfg = load_config(args)
    check_data(cfg, ('test', ), read_files=not args.skip_data_checks)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        apply_visualization(cfg, args)
    if args.tta:
        apply_tta(cfg)
    runner = build_runner(cfg, whole=True)
    if args.out:
        runner.test_evaluator.metrics.append(_dump_metric(cfg.default_scope, args.out))
    return runner.test()


def _dump_metric(scope: str, path: str) -> DumpResults:
    if scope != 'mmdet':
        return DumpResults(out_file_path=path)
    return import_module('mmdet.evaluation').DumpDetResults(out_file_path=path)
