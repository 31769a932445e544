"""From command-line arguments to a runner, for MMDetection, MMSegmentation and MMPretrain configs alike.

Follows the arguments of OpenMMLab's ``tools/train.py`` and ``tools/test.py``. Differs from them in checking the data
and the class count before a long start, in loading checkpoints through an exact allow-list, and in replacing SyncBN
where it cannot run.
"""
import json
import mmap
import os
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from copy import deepcopy
from importlib import import_module
from typing import Callable, Iterator, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import skip_initial_weights_on_resume, unwrap
from .safe_loading import allow_mmengine_checkpoints

VISUALIZATION_HOOKS = dict(
    mmdet=dict(type='DetVisualizationHook'),
    mmpretrain=dict(type='VisualizationHook'),
    mmseg=dict(type='SegVisualizationHook'))
# A traceback's last entry when a `raise` statement of this package made the error: file, statement, message
STATED = re.compile(r'File "([^"]+)", line \d+, in [^\n]*\n\s+raise (?:ValueError|FileNotFoundError|RuntimeError)\('
                    r'(?:(?!File ")[\s\S])*?^\w+: ([\s\S]+)\Z', re.MULTILINE)


def run_tool(tool: Callable[[Namespace], object], args: Namespace) -> None:
    """Run a command; what the user can mend ends as one line and exit status 1, anything else as a traceback.

    Errors that this package raises on purpose, and files that cannot be opened, are the user's to mend;
    ``--traceback`` shows where they were found.
    """
    try:
        tool(args)
    except Exception as error:
        message = stated_mistake(error)
        if message is None or args.traceback:
            raise
        sys.exit(f'error: {message}')


def stated_mistake(error: Optional[BaseException]) -> Optional[str]:
    """Return the one-line message of an error that is the user's to mend, in this process or a data loader's worker;
    None for any other."""
    if error is None:
        return None
    match = STATED.search(''.join(traceback.format_exception(error, chain=False)).rstrip())
    if match and os.path.abspath(match[1]).startswith(os.path.dirname(os.path.abspath(__file__)) + os.sep):
        return ' '.join(match[2].split())
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}'
    return stated_mistake(error.__cause__ or error.__context__)


def _add_common_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; default work_dirs/CONFIG_NAME')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value ...')
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


def dataset_classes(dataset: dict, scope: str) -> Tuple[str, ...]:
    """Return the class names of a data set: those of its ``metainfo``, or else of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}')
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return (classes, ) if isinstance(classes, str) else tuple(classes or ())


def check_class_count(cfg: Config, dataset: dict, split: str) -> None:
    """Compare the heads' ``num_classes``, the data set's class names and a COCO-style annotation file.

    Raises:
        ValueError: Naming both numbers, or the classes that the annotation file lacks.
    """
    counts, classes = model_class_counts(cfg.model), dataset_classes(dataset, cfg.default_scope)
    annotated, source = _annotated_classes(cfg, dataset)
    lacking = [name for name in classes if name not in annotated]
    if annotated and lacking:
        raise ValueError(f'metainfo.classes={classes} of {split}_dataloader: {source} has no {lacking}, its categories '
                         f'are {annotated}. Set metainfo.classes to names among them, and num_classes to their count.')
    if classes and counts and counts != {len(classes)}:
        raise ValueError(f'num_classes={sorted(counts)} in the model, but {len(classes)} classes in metainfo.classes '
                         f'({split}_dataloader). Set num_classes and metainfo.classes to the same classes.')


def _annotated_classes(cfg: Config, dataset: dict) -> Tuple[list, str]:
    """Return the category names of a COCO-style annotation file, none where there is no such file, and its path."""
    source = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if cfg.default_scope != 'mmdet' or not source.endswith('.json') or '://' in source:
        return [], source
    return [category['name'] for category in _read_categories(source)], source


def _read_categories(path: str) -> list:
    """Return a COCO-style file's ``categories`` without parsing the rest, which in COCO's own is 450 MB.

    Raises:
        ValueError: If the file is empty.
    """
    if not os.path.getsize(path):
        raise ValueError(f'the annotation file {path} is empty; expected COCO\'s JSON.')
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b'[', content.rfind(b'"categories"'))
        text = content[start:start + 2**20].decode(errors='ignore')
    try:
        return json.JSONDecoder().raw_decode(text)[0] if start > 0 else []
    except ValueError:
        return []


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
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_on_cpu(cfg)


def _join_on_cpu(cfg: Config) -> None:
    """Join the processes here, and wrap the model without devices: mmengine would ask for CUDA in both places."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                   find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('model_wrapper_cfg', ConfigDict(wrapper))


def _replace_type(node, old: str, new: str) -> int:
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(child, old, new) for child in node)
    if not isinstance(node, dict):
        return 0
    hit = node.get('type') == old
    if hit:
        node['type'] = new
    return int(hit) + sum(_replace_type(child, old, new) for child in node.values())


class MatchingWeightsHook(Hook):
    """Refuse a checkpoint of another model, which mmengine would load in part and go on.

    Args:
        whole (bool): Whether every parameter must be there, as for resuming and testing. Otherwise, for
            ``load_from``, those of the backbone: heads may differ in their classes.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            ValueError: Naming the parameters that are missing or of another shape.
        """
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        if not isinstance(model, nn.Module) or is_model_wrapper(model):
            return  # sharded parameters have other shapes
        weights = unwrap(checkpoint)
        weights = {re.sub('^module[.]', '', name): value for name, value in weights.items()}
        wanted = {name: value.shape for name, value in model.named_parameters()
                  if self.whole or name.startswith('backbone.')}
        wrong = [name for name, shape in wanted.items() if getattr(weights.get(name), 'shape', None) != shape]
        if wrong:
            raise ValueError(
                f'the checkpoint {runner._load_from or ""} is of another model: {len(wrong)} of {len(wanted)} weights '
                f'are missing or of another shape, {", ".join(wrong[:3])} ... Give a checkpoint that this config '
                'trained; weights for the backbone alone go into model.backbone.init_cfg.checkpoint.')


def build_runner(cfg: Config, whole: bool) -> Runner:
    """Build the runner that the config asks for.

    Args:
        cfg (Config): The config.
        whole (bool): See :class:`MatchingWeightsHook`.
    """
    revert_sync_batch_norm(cfg)
    allow_mmengine_checkpoints()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(MatchingWeightsHook(whole=whole), priority='LOWEST')
    return runner


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
        # mmengine takes the batch of one forward; an optimizer step sees accumulative_counts of them
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
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
    if cfg.get('load_from'):
        _check_checkpoint(cfg.load_from, '--resume' if args.resume else 'load_from')
    check_data(cfg, ('train', 'val') if cfg.get('val_cfg') is not None else ('train', ))
    runner = build_runner(cfg, whole=bool(cfg.get('resume')))
    skip_initial_weights_on_resume(runner)
    runner.train()


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
    runner = build_runner(cfg, whole=True)
    if args.out:
        runner.test_evaluator.metrics.append(_dump_metric(cfg.default_scope, args.out))
    return runner.test()


def _dump_metric(scope: str, path: str) -> DumpResults:
    if scope != 'mmdet':
        return DumpResults(out_file_path=path)
    return import_module('mmdet.evaluation').DumpDetResults(out_file_path=path)
