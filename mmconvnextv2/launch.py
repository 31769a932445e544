"""From command-line arguments to a runner, for MMDetection, MMSegmentation and MMPretrain configs alike.

Follows the arguments of OpenMMLab's ``tools/train.py`` and ``tools/test.py``. Differs from them in checking the data
and the class count before a long start, in loading checkpoints through an exact allow-list, and in replacing SyncBN
where it cannot run.
"""
import json
import os
from argparse import ArgumentParser, Namespace
from copy import deepcopy
from importlib import import_module
from typing import Iterator, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .checkpoint import skip_initial_weights_on_resume
from .safe_loading import allow_mmengine_checkpoints

VISUALIZATION_HOOKS = dict(
    mmdet=dict(type='DetVisualizationHook'),
    mmpretrain=dict(type='VisualizationHook'),
    mmseg=dict(type='SegVisualizationHook'))
SPLITS = ('train', 'val', 'test')


def _add_common_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default work_dirs/CONFIG_NAME')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value ...')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed')


def parse_train_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse the arguments of ``tools/train.py``."""
    parser = ArgumentParser(
        description='Train a model.',
        epilog='Example: python tools/train.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py --resume')
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', nargs='?', const='auto', help='a checkpoint, or nothing for the latest of work-dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bf16)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
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
    if not os.path.isfile(args.config):
        raise ValueError(f'config={args.config!r} does not exist; `ls configs/*` lists the recipes.')
    MODULE2PACKAGE.setdefault('mmconvnextv2', 'mmconvnextv2')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    name = os.path.splitext(os.path.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    import_scope(cfg)
    return cfg


def import_scope(cfg: Config) -> None:
    """Import the package of ``default_scope`` so that its classes are registered.

    Raises:
        ValueError: If the scope is unknown or not installed.
    """
    scope = cfg.get('default_scope')
    if scope not in VISUALIZATION_HOOKS:
        raise ValueError(f'default_scope={scope!r} is unknown; allowed are {sorted(VISUALIZATION_HOOKS)}.')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    except ModuleNotFoundError as error:
        raise ValueError(f'default_scope={scope!r} needs the package {error.name!r}; install it first.') from error


def _inner_datasets(dataset: dict) -> Iterator[dict]:
    """Walk through wrappers such as RepeatDataset and ConcatDataset down to the datasets that read files."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is None:
        yield dataset
        return
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _inner_datasets(child)


def _dataset_paths(dataset: dict) -> Iterator[Tuple[str, str]]:
    """Yield (config key, path) for the root, the annotation file and the folders of a dataset."""
    root = dataset.get('data_root') or ''
    if root:
        yield 'data_root', root
    if dataset.get('ann_file'):
        yield 'ann_file', os.path.join(root, dataset['ann_file'])
    prefix = dataset.get('data_prefix') or {}
    for key, folder in (prefix.items() if isinstance(prefix, dict) else [('', prefix)]):
        if isinstance(folder, str):
            yield f'data_prefix.{key}'.rstrip('.'), os.path.join(root, folder)


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the data of the given splits is there and agrees with the model's classes.

    Raises:
        ValueError: Naming the config key and the path that is missing, or both class counts.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        for dataset in _inner_datasets(loader.get('dataset') or {}):
            for key, path in _dataset_paths(dataset):
                if '://' not in path and not os.path.exists(path):
                    raise ValueError(f'{split}_dataloader.dataset.{key}: {path!r} does not exist. Lay the data out as '
                                     'configs/README.md says, or set the key with --cfg-options.')
            check_class_count(cfg, dataset, split)


def model_class_counts(model: dict) -> set:
    """Collect every ``num_classes`` of the heads that see the data set's classes."""
    if isinstance(model, (list, tuple)):
        return set().union(*(model_class_counts(item) for item in model))
    if not isinstance(model, dict):
        return set()
    counts = {model['num_classes']} if isinstance(model.get('num_classes'), int) else set()
    names = [key for key in model if key not in ('rpn_head', 'data_preprocessor', 'backbone')]
    return counts.union(*(model_class_counts(model[name]) for name in names))


def check_class_count(cfg: Config, dataset: dict, split: str) -> None:
    """Compare the heads' ``num_classes`` with ``metainfo.classes`` or a COCO-style annotation file.

    Raises:
        ValueError: Naming both numbers.
    """
    counts = model_class_counts(cfg.model)
    found = len((dataset.get('metainfo') or {}).get('classes', ()))
    source = 'metainfo.classes'
    if not found and str(dataset.get('ann_file', '')).endswith('.json') and cfg.default_scope == 'mmdet':
        source = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
        if '://' in source:
            return
        with open(source) as file:
            found = len(json.load(file).get('categories', ()))
    if found and counts and counts != {found}:
        raise ValueError(f'num_classes={sorted(counts)} in the model, but {found} classes in {source} '
                         f'({split}_dataloader). Set num_classes and metainfo.classes to the same classes.')


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


def _replace_type(node, old: str, new: str) -> int:
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(child, old, new) for child in node)
    if not isinstance(node, dict):
        return 0
    hit = node.get('type') == old
    if hit:
        node['type'] = new
    return int(hit) + sum(_replace_type(child, old, new) for child in node.values())


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    revert_sync_batch_norm(cfg)
    allow_mmengine_checkpoints()
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def apply_train_args(cfg: Config, args: Namespace) -> None:
    """Carry ``--amp``, ``--auto-scale-lr`` and ``--resume`` into the config.

    Raises:
        ValueError: If the config lacks ``auto_scale_lr.base_batch_size``, or the checkpoint does not exist.
    """
    if args.amp:
        cfg.optim_wrapper.type = 'BF16OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config.')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        _check_checkpoint(cfg.load_from, '--resume')


def _check_checkpoint(path: Optional[str], argument: str) -> None:
    if path and '://' not in path and not os.path.isfile(path):
        raise ValueError(f'{argument}={path!r} does not exist; give a checkpoint file or its URL.')


def train(args: Namespace) -> None:
    """Train as ``tools/train.py`` is told to."""
    cfg = load_config(args)
    apply_train_args(cfg, args)
    check_data(cfg, ('train', 'val') if cfg.get('val_cfg') is not None else ('train', ))
    runner = build_runner(cfg)
    skip_initial_weights_on_resume(runner)
    runner.train()


def apply_visualization(cfg: Config, args: Namespace) -> None:
    """Switch on the scope's visualization hook for ``--show`` and ``--show-dir``."""
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault(
        'visualization', ConfigDict(VISUALIZATION_HOOKS[cfg.default_scope]))
    is_classification = cfg.default_scope == 'mmpretrain'
    hook['enable' if is_classification else 'draw'] = True
    hook.update(show=args.show, wait_time=args.wait_time)
    if args.show_dir:
        hook['out_dir' if is_classification else 'test_out_dir'] = args.show_dir
    if cfg.default_scope == 'mmseg' and args.show_dir:
        hook.pop('test_out_dir')
        cfg.visualizer['save_dir'] = args.show_dir


def apply_tta(cfg: Config) -> None:
    """Wrap the model in the config's ``tta_model`` and test through its ``tta_pipeline``.

    Raises:
        ValueError: If the config has no such keys.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise ValueError(f'--tta needs {key} in the config.')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in _inner_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = deepcopy(cfg.tta_pipeline)


def test(args: Namespace) -> dict:
    """Evaluate as ``tools/test.py`` is told to.

    Returns:
        dict: The metrics.

    Raises:
        ValueError: If the checkpoint does not exist or ``--out`` is no pickle file.
    """
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out={args.out!r} must end in .pkl or .pickle.')
    _check_checkpoint(args.checkpoint, 'checkpoint')
    cfg = load_config(args)
    check_data(cfg, ('test', ))
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        apply_visualization(cfg, args)
    if args.tta:
        apply_tta(cfg)
    runner = build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(_dump_metric(cfg.default_scope, args.out))
    return runner.test()


def _dump_metric(scope: str, path: str) -> DumpResults:
    if scope != 'mmdet':
        return DumpResults(out_file_path=path)
    return import_module('mmdet.evaluation').DumpDetResults(out_file_path=path)
