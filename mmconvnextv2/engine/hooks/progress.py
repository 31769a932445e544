"""ProgressHook: one line with the loss and the time left, where the console is a terminal."""

import logging
import sys
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

WINDOW = 20  # iterations of the mean loss
PER_SECOND = 2  # redraws


def _is_not_an_iteration(record: logging.LogRecord) -> bool:
    return '(train)' not in record.getMessage()[:20]  # Epoch(train) [1][20/43] ... or Iter(train) [20/1500] ...


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show a progress bar with the mean loss of the last 20 iterations and the time left, evaluations included.

    The lines that a logger prints above it stay; those of single iterations go to the log file only.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._progress: Any = None
        self._quieted: list[logging.StreamHandler] = []

    def before_train(self, runner) -> None:
        """Start the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [BarColumn(20), MofNCompleteColumn(), TextColumn('loss {task.fields[loss]}'), TimeRemainingColumn()]
        self._progress = Progress(*columns, TextColumn('left'), refresh_per_second=PER_SECOND)
        self._task = self._progress.add_task('', total=runner.max_iters, completed=runner.iter, loss='-')
        self._progress.start()  # from here on sys.stdout prints above the bar
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.stdout)
                handler.addFilter(_is_not_an_iteration)
                self._quieted.append(handler)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Move the bar; MMEngine has read the loss from the device already."""
        logged = runner.message_hub.log_scalars.get('train/loss')
        loss = f'{logged.mean(WINDOW):.4f}' if logged is not None else '-'
        self._progress.update(self._task, completed=runner.iter + 1, loss=loss)

    def close(self) -> None:
        """End the bar, and give the console back; also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for handler in self._quieted:
            handler.setStream(sys.stdout)
            handler.removeFilter(_is_not_an_iteration)
        self._quieted = []

    def after_train(self, runner) -> None:
        """End the bar."""
        self.close()
