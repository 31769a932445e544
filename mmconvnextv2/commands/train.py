"""``tools/train.py``: train with a config of MMDetection, MMSegmentation or MMPretrain.

The arguments include those of OpenMMLab's ``tools/train.py``. Unlike it, this tool checks the data and the class count
before training starts.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..engine.devices import has_bf16
from ..engine.folder_lock import lock_folder
from ..engine.hooks import ProgressHook, skip_initial_weights_on_resume
from ..engine.schedule import fit_schedule
from ..utils.errors import UserError
from .arguments import add_run_arguments, check_checkpoint, load_run_config
from .data_checks import check_data
from .plan import make_plan, settle_length
from .runner import build_runner
from .train_flags import add_train_options, apply_train_options


def parse_train_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/train.py``."""
    parser = ArgumentParser(
        description='Train a model.',
        epilog='Example: python tools/train.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py --resume',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', nargs='?', const='auto', help='checkpoint; without a value, the latest in work-dir')
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16, or float16 on GPUs without it')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--seed', type=int, help='seed of initialisation, data order, augmentation and masks')
    parser.add_argument('--plan', action='store_true', help='print what the run would do, and end')
    add_train_options(parser)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def apply_train_args(cfg: Config, args: Namespace) -> None:
    """Apply ``--amp``, ``--auto-scale-lr``, ``--resume`` and the flags of ``train_flags.py`` to the config.

    Raises:
        ValueError: If the config lacks ``auto_scale_lr.base_batch_size``, or the checkpoint does not exist; see also
            :func:`~mmconvnextv2.commands.train_flags.apply_train_options`.
    """
    if args.seed is not None:
        cfg.merge_from_dict({'randomness.seed': args.seed})
    apply_train_options(cfg, args)
    if args.amp:
        cfg.optim_wrapper.type = 'BF16OptimWrapper' if has_bf16() else 'FP16OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
        # mmengine counts the batch of one forward, but an optimizer step sees accumulative_counts of them
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        check_checkpoint(cfg.load_from, '--resume')


def train(args: Namespace) -> None:
    """Entry point of ``tools/train.py``."""
    cfg = load_run_config(args)
    apply_train_args(cfg, args)
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, '--resume' if args.resume else 'load_from')
    check_data(
        cfg, ('train', 'val') if cfg.get('val_cfg') is not None else ('train',), read_files=not args.skip_data_checks
    )
    scaled = fit_schedule(cfg)
    with _work_folder(cfg, only_plan=args.plan):
        runner = build_runner(cfg, whole=bool(cfg.get('resume')))
        cut = settle_length(runner)
        runner.logger.info(make_plan(runner, [note for note in (scaled, cut) if note]))
        if args.plan:
            return
        skip_initial_weights_on_resume(runner)
        bar = ProgressHook()
        if sys.stdout.isatty() and not args.verbose and is_main_process():
            runner.register_hook(bar)
        try:
            runner.train()
        finally:
            bar.close()


@contextmanager
def _work_folder(cfg: Config, only_plan: bool) -> Iterator[None]:
    """Lock the work folder; a run that is only planned gets a temporary one."""
    if only_plan:
        with TemporaryDirectory() as cfg.work_dir:
            cfg.experiment_name = os.path.basename(cfg.work_dir)  # mmengine's visualizers are shared by name
            yield
        return
    if cfg.launcher == 'none':  # before the runner writes; in distributed runs the hook's main process locks
        lock_folder(cfg.work_dir)
    yield
