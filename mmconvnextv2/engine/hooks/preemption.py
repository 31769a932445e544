"""PreemptionHook: on a signal, finish the iteration, save a checkpoint and exit; plain MMEngine dies at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from ...utils.errors import UserError
from .checkpoint import ATOMIC, write_last_checkpoint

INTERRUPTED = 'interrupted.pth'


def ignore_sigterm(initialise: Callable | None, worker: int) -> None:
    """Worker init that ignores SIGTERM unless the parent process sent it.

    A cluster may send SIGTERM to every process, but the main process needs its workers until the checkpoint is written.
    """
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
    """On SIGTERM, save ``interrupted.pth`` after the current iteration, and exit with status 143.

    ``--resume`` continues from that file, at the same iteration with ``ResumableTrainLoop`` and iteration-based loops.
    With mmengine's ``EpochBasedTrainLoop`` it repeats the current epoch from the saved weights. During validation the
    process exits at once, and ``--resume`` continues from the last checkpoint. A second signal ends the process without
    saving.

    Args:
        signals (Sequence[str]): Names of the signals that request a stop. Defaults to ('SIGTERM', ).
        interval (int): Number of iterations between checks of whether any process was asked to stop, if there are
            several. Defaults to 10; a single process checks after each iteration.

    Raises:
        ValueError: If a signal is unknown or the interval not positive.
    """

    priority = 'LOWEST'

    def __init__(self, signals: Sequence[str] = ('SIGTERM',), interval: int = 10) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown or interval < 1:
            raise UserError(
                f'signals={signals}, interval={interval} of PreemptionHook: expected names such as '
                "'SIGTERM' or 'SIGUSR1', and 1 or more iterations"
            )
        self.signals = [signal.Signals[name] for name in signals]
        self.interval = interval
        self._requested_at = None
        self._handlers = {}

    def before_run(self, runner) -> None:
        """Install the signal handlers of a training, and make the data loader's workers ignore the signal."""
        # runner.train_loop would build the loop, and with it read the training data
        if threading.current_thread() is not threading.main_thread() or not isinstance(runner._train_loop, BaseLoop):
            return
        self._handlers = {number: signal.signal(number, self._request_stop) for number in self.signals}
        loader = getattr(runner._train_loop, 'dataloader', None)
        if loader is not None and signal.SIGTERM in self._handlers:
            loader.worker_init_fn = partial(ignore_sigterm, loader.worker_init_fn)

    def after_run(self, runner) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """If a stop was requested, save and exit; at the last iteration, :meth:`after_train_epoch` does it."""
        loader = runner.train_dataloader
        by_epoch = hasattr(runner.train_loop, 'run_epoch')
        if by_epoch and self.end_of_epoch(loader, batch_idx):
            return
        if is_distributed() and (runner.iter + 1) % self.interval:
            return
        if self._stop_requested():
            exact = not by_epoch or hasattr(loader.sampler, 'skip')
            place = runner.iter + 1 if exact else runner.epoch * len(loader)
            self._end(runner, dict(epoch=runner.epoch, iter=place))

    def after_train_epoch(self, runner) -> None:
        """If a stop was requested, save and exit."""
        if self._stop_requested():
            self._end(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """If a stop was requested, exit; only for a single process, since several cannot agree during an evaluation."""
        if self._requested_at is not None and not is_distributed():
            self._leave(runner, 'exiting during validation: --resume continues from the last checkpoint')

    def _request_stop(self, number: int, frame: Any) -> None:
        if self._requested_at is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._requested_at = time.monotonic()

    def _stop_requested(self) -> bool:
        """Return whether a stop was requested of any process."""
        requested = torch.tensor(int(self._requested_at is not None))
        if is_distributed():
            all_reduce(requested, 'max')
        return bool(requested)

    def _end(self, runner, meta: dict) -> None:
        path = os.path.join(runner.work_dir, INTERRUPTED)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, by_epoch=False, meta=dict(meta), backend_args=ATOMIC)
        write_last_checkpoint(runner, path)
        self._leave(runner, f'saved {path} after iteration {meta["iter"]}: continue with --resume')

    def _leave(self, runner, what: str) -> None:
        seconds = time.monotonic() - (self._requested_at or time.monotonic())
        names = '/'.join(one.name for one in self.signals)
        runner.logger.warning(f'stop requested by {names}, {what} ({seconds:.1f} s)')
        if is_distributed():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        raise SystemExit(128 + signal.SIGTERM)


# Forked processes must not inherit the handler: multiprocessing.Pool, which MMDetection's VOC metric uses, sends
# SIGTERM to its processes and waits for their end. Signals are blocked during a fork, since Python forgets those that
# arrive before the new process first runs.
def _postponed() -> set[signal.Signals]:
    """Return the signals that a hook handles now."""
    owners = {number: getattr(signal.getsignal(number), '__self__', None) for number in signal.Signals}
    return {number for number, owner in owners.items() if isinstance(owner, PreemptionHook)}


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _postponed())


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _postponed())


def _restore_defaults() -> None:
    numbers = _postponed()
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_restore_defaults)
