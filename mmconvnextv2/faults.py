"""What a training run does when it is told to stop, when its loss is no number, and when a part of it dies.

mmengine dies of SIGTERM at once, trains on with NaN, and shows tracebacks of torch's own for the rest.
"""
import errno
import logging
import math
import os
import signal
import threading
import time
from functools import partial
from typing import Any, Callable, List, Optional, Sequence

import torch
from mmengine.dist import all_reduce, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor

from .errors import RunError, UserError
from .safe_saving import ATOMIC, point_to

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SILENT = ('Timed out waiting', 'timeout', 'Connection closed by peer', 'Connection reset by peer', 'Broken pipe',
          'Watchdog caught collective operation')
NEEDS_COMPILED = 'needs compiled mmcv'  # an operator that torchvision lacks
INTERRUPTED = 'interrupted.pth'


def explain_fault(error: BaseException) -> Optional[str]:
    """Return one line for the known faults of a machine, None for any other error.

    These are a full disk, a data loader's worker that died, another process that died or hangs, and too little memory
    on the GPU.
    """
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and error.errno in FULL:
        return (f'the disk is full ({error.strerror}): make room, and call again what failed, tools/train.py with '
                '--resume; what was finished before is whole')
    if isinstance(error, ImportError) and error.name == 'mmcv._ext':
        return (f'{text}: mmcv has no compiled operators here. Import mmconvnextv2 before mmdet, mmseg or mmcv.ops, or '
                'run `python -m mmconvnextv2 install-operators` once, and leave MMCONVNEXTV2_OPERATORS unset')
    if isinstance(error, RuntimeError) and NEEDS_COMPILED in text:
        return text
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f'too little GPU memory: lower train_dataloader.batch_size or set model.backbone.with_cp. {text}'
    if 'The image size in a batch should be the same' in text:
        return ('val_dataloader and test_dataloader: pictures of several sizes are in one batch: set batch_size=1 for '
                'both, or pad them with model.data_preprocessor.test_cfg.size_divisor=32')
    if 'DataLoader worker' in text and ('exited unexpectedly' in text or 'is killed by signal' in text):
        return (f'{text.split(". ")[0].rstrip(".")}: a process that reads data died. The machine may lack memory: '
                'lower train_dataloader.num_workers, then go on with --resume')
    if isinstance(error, RuntimeError) and is_distributed() and any(sign in text for sign in SILENT):
        return (f'process {get_rank()} waited in vain for another one, which died or hangs (the limit is '
                f'env_cfg.dist_cfg.timeout, in seconds): see its log, then go on with --resume. {text}')
    return None


def deaf_worker(initialise: Optional[Callable], worker: int) -> None:
    """Start a data loader's worker that takes SIGTERM from its parent alone: a cluster may send it to every process,
    and the main one needs its workers until the checkpoint is written."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    if initialise is not None:
        initialise(worker)


def _end_when_the_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM save ``interrupted.pth`` after the iteration under way, and end with status 143.

    ``--resume`` goes on from it: at the very iteration with ``ResumableTrainLoop`` and iteration-based loops, at the
    start of the epoch under way, with the weights as they are, with mmengine's ``EpochBasedTrainLoop``. While
    validating, the process ends at once, and ``--resume`` takes the last checkpoint. A second signal ends the process
    without saving.

    Args:
        signals (Sequence[str]): What asks for an end. Defaults to ('SIGTERM', ).
        interval (int): Iterations after which several processes agree whether one of them was told to stop. Defaults
            to 10; a process alone looks after every one.

    Raises:
        ValueError: If a signal is unknown or the interval not positive.
    """
    priority = 'LOWEST'

    def __init__(self, signals: Sequence[str] = ('SIGTERM', ), interval: int = 10) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown or interval < 1:
            raise UserError(f'signals={signals}, interval={interval} of PreemptionHook: expected names such as '
                            "'SIGTERM' or 'SIGUSR1', and 1 or more iterations")
        self.signals = [signal.Signals[name] for name in signals]
        self.interval = interval
        self._told_at = None
        self._handlers = {}

    def before_run(self, runner) -> None:
        """Listen, and make the data loader's workers not listen."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._handlers = {number: signal.signal(number, self._be_told) for number in self.signals}
        loader = getattr(getattr(runner, 'train_loop', None), 'dataloader', None)
        if loader is not None and signal.SIGTERM in self._handlers:
            loader.worker_init_fn = partial(deaf_worker, loader.worker_init_fn)

    def after_run(self, runner) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save and end when told to; the last iteration of an epoch leaves that to the epoch's end."""
        loader = runner.train_dataloader
        by_epoch = hasattr(runner.train_loop, 'run_epoch')
        if by_epoch and self.end_of_epoch(loader, batch_idx):
            return
        if is_distributed() and (runner.iter + 1) % self.interval:
            return
        if self._all_told():
            exact = not by_epoch or hasattr(loader.sampler, 'skip')
            place = runner.iter + 1 if exact else runner.epoch * len(loader)
            self._end(runner, dict(epoch=runner.epoch, iter=place))

    def after_train_epoch(self, runner) -> None:
        """Save and end when told to."""
        if self._all_told():
            self._end(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """End when told to; a process alone only, as the others cannot agree in the middle of an evaluation."""
        if self._told_at is not None and not is_distributed():
            self._leave(runner, 'ends while validating: --resume goes on from the last checkpoint')

    def _be_told(self, number: int, frame: Any) -> None:
        if self._told_at is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._told_at = time.monotonic()

    def _all_told(self) -> bool:
        """Whether any process was told to stop."""
        told = torch.tensor(int(self._told_at is not None))
        if is_distributed():
            all_reduce(told, 'max')
        return bool(told)

    def _end(self, runner, meta: dict) -> None:
        path = os.path.join(runner.work_dir, INTERRUPTED)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, by_epoch=False, meta=dict(meta), backend_args=ATOMIC)
        point_to(runner, path)
        self._leave(runner, f'saved {path} after iteration {meta["iter"]}: go on with --resume')

    def _leave(self, runner, what: str) -> None:
        seconds = time.monotonic() - (self._told_at or time.monotonic())
        runner.logger.warning(f'told to stop by {"/".join(one.name for one in self.signals)}, {what} ({seconds:.1f} s)')
        if is_distributed():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        raise SystemExit(128 + signal.SIGTERM)


def picture_names(batch: Any) -> List[str]:
    """List the files of a batch as data loaders give it."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return [str(getattr(sample, 'img_path', '?')) for sample in samples or []]


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at a loss or gradient that is NaN or infinite, or skip a set number of such updates; name the pictures.

    A bad update changes neither weights nor moments. A fused optimizer is told on the device, without waiting, that a
    gradient is not finite (torch's ``found_inf``), and leaves everything as it is; from another one the gradients are
    taken away before it steps, for which the host waits. Under fp16 the loss scaler does so. No checkpoint is written
    between a bad update and the end of the run.

    Args:
        max_skips (int): Updates that may be skipped in the whole run, resumed ones included. Defaults to 0: stop at the
            first.

    Raises:
        ValueError: If ``max_skips`` is negative.
    """
    priority = 'VERY_HIGH'

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise UserError(f'max_skips={max_skips} of FiniteLossHook: expected 0 or more')
        self.max_skips = max_skips
        self._num_skips = 0
        self._found = None  # whether the step of this iteration met a bad gradient
        self._bad = []

    def before_train(self, runner) -> None:
        """Look at gradients before each step."""
        self._num_skips = runner.message_hub.runtime_info.get('num_skipped_updates', 0)
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self._look_at_gradients)
        optimizer.register_step_post_hook(self._forget)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Name the pictures of a bad loss; count a bad update.

        Raises:
            RuntimeError: If it is one too many.
        """
        loss = float(torch.as_tensor((outputs or {}).get('loss', 0.)).detach())
        if not math.isfinite(loss):
            self._bad.append(f'loss {loss} in process {get_rank()} of {", ".join(picture_names(data_batch))}')
            print_log(f'iteration {runner.iter + 1}: {self._bad[-1]}', 'current', logging.ERROR)
        skipped, self._found = self._found is not None and bool(self._found), None
        if not skipped and not (self._bad and runner.optim_wrapper.should_update()):
            return
        found, self._bad = '; '.join(self._bad) or 'gradients that are not finite', []
        self._num_skips += 1
        runner.message_hub.update_info('num_skipped_updates', self._num_skips)
        if self._num_skips > self.max_skips:
            raise RunError(f'stopped at iteration {runner.iter + 1}: {found}. --resume goes on from the last '
                           'checkpoint, which is from before; look at those pictures, lower the learning rate, or '
                           f"let custom_hooks' dict(type='FiniteLossHook', max_skips={self.max_skips}) skip more")
        print_log(f'iteration {runner.iter + 1}: skipped an update, {self._num_skips} of at most {self.max_skips}: '
                  f'{found}', 'current', logging.WARNING)

    @torch.compiler.disable  # a graph of a whole training step cannot set attributes of the optimizer
    def _look_at_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Keep the step from doing anything when a gradient is not finite; a loss scaler has its own way."""
        if getattr(optimizer, 'found_inf', None) is not None:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']
                      if parameter.grad is not None]
        if not parameters:
            return
        self._found = _not_finite([parameter.grad for parameter in parameters])
        if optimizer.defaults.get('fused'):
            optimizer.found_inf = self._found.float()
        elif self._found:
            for parameter in parameters:
                parameter.grad = None

    @torch.compiler.disable
    def _forget(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._found is not None and optimizer.defaults.get('fused'):
            del optimizer.found_inf


def _not_finite(gradients: List[Tensor]) -> Tensor:
    """Return whether any element of all gradients is NaN or infinite, a bool scalar on their device."""
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
    return ~torch.isfinite(norm)
