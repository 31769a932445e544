"""``tools/test.py``: evaluate a checkpoint."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from ..engine.inference.speed import accelerate
from ..utils.config import inner_datasets, reads_annotations
from ..utils.errors import UserError
from .arguments import (
    VISUALIZATION_HOOKS,
    add_run_arguments,
    add_speed,
    check_checkpoint,
    load_run_config,
    settle_name,
)
from .data_checks import check_data
from .runner import build_runner


def parse_test_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/test.py``."""
    parser = ArgumentParser(
        description='Evaluate a checkpoint.',
        epilog='Example: python tools/test.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py a.pth --tta',
    )
    parser.add_argument('config', help='config file, or the name of a public model')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; none after a name')
    parser.add_argument('--out', help='file for the predictions, .pkl or .pickle')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with drawn predictions, and for mistakes.json')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds to show each image; default 2')
    parser.add_argument('--tta', action='store_true', help="use the config's test-time augmentation")
    add_speed(parser)
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    if settle_name(parser, args) is not None or args.checkpoint is None:
        parser.error('expected CONFIG CHECKPOINT or NAME; `python -m mmconvnextv2 models` lists names')
    return args


def apply_visualization(cfg: Config, args: Namespace) -> None:
    """Enable the scope's visualization hook for ``--show`` and ``--show-dir``, and rank the images of the latter."""
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault(
        'visualization', ConfigDict(VISUALIZATION_HOOKS[cfg.default_scope])
    )
    is_classification = cfg.default_scope == 'mmpretrain'
    hook['enable' if is_classification else 'draw'] = True
    hook.update(show=args.show, wait_time=args.wait_time, interval=1)
    if not args.show_dir:
        return
    folder = os.path.abspath(args.show_dir)  # mmdet resolves a relative path against the work folder
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='MistakesHook', out_dir=folder)]
    if cfg.default_scope == 'mmseg':
        cfg.visualizer['save_dir'] = folder
    else:
        hook['out_dir' if is_classification else 'test_out_dir'] = folder


def apply_tta(cfg: Config) -> None:
    """Wrap the model in the config's ``tta_model``, and test with its ``tta_pipeline``.

    Raises:
        ValueError: If the config lacks one of these keys.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if key not in cfg:
            raise UserError(f'--tta needs {key} in the config')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    if 'data_preprocessor' in cfg.model.module:  # mmengine would use the base's, at the top level
        cfg.model.data_preprocessor = deepcopy(cfg.model.module.data_preprocessor)
    for dataset in inner_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = _like_test(deepcopy(cfg.tta_pipeline), dataset.get('pipeline') or [])


def _like_test(tta_pipeline: list, test_pipeline: Sequence[dict]) -> list:
    """Replace the loading steps of a TTA pipeline with those of the test pipeline, which suit the user's data."""
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
    """Entry point of ``tools/test.py``: evaluate a checkpoint.

    Returns:
        dict: Metrics of the evaluation.

    Raises:
        ValueError: If the checkpoint does not exist or ``--out`` is not a pickle file.
    """
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out={args.out!r}: expected a file name that ends in .pkl or .pickle')
    check_checkpoint(args.checkpoint, 'checkpoint')
    cfg = load_run_config(args)
    check_data(cfg, ('test',), read_files=not args.skip_data_checks)
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        apply_visualization(cfg, args)
    if args.tta:
        apply_tta(cfg)
    runner = build_runner(cfg, whole=True)
    accelerate(runner.model, args.amp, args.compile)
    if args.out:
        runner.test_evaluator.metrics.append(_dump_metric(cfg.default_scope, args.out))
    return runner.test()


def _dump_metric(scope: str, path: str) -> DumpResults:
    if scope != 'mmdet':
        return DumpResults(out_file_path=path)
    return import_module('mmdet.evaluation').DumpDetResults(out_file_path=path)
