"""DeferredRuntimeInfoHook: losses stay on the GPU until they are logged, so that no iteration waits for the device."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook, LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS
from torch import Tensor


def on_gpu(values: Iterable[Any]) -> bool:
    """Return whether any of some values is a tensor that the host would have to wait for."""
    return any(isinstance(value, Tensor) and value.is_cuda for value in values)


def is_read_now(hook: Hook, runner: Any, batch_idx: int, values: Iterable[Any]) -> bool:
    """Return whether to read values after this iteration, the same in all processes.

    They are read if they are not on a GPU, where they are logged or a checkpoint is saved, and at the end of an epoch
    and of the training.
    """
    if not on_gpu(values) or hook.end_of_epoch(runner.train_dataloader, batch_idx) or hook.is_last_train_iter(runner):
        return True
    return any(
        (isinstance(one, LoggerHook) and hook.every_n_inner_iters(batch_idx, one.interval))
        or (isinstance(one, CheckpointHook) and not one.by_epoch and hook.every_n_train_iters(runner, one.interval))
        for one in runner.hooks
    )


def fetch(tensors: list[Tensor]) -> list[float]:
    """Return the values of scalars on one device, which the host waits for once."""
    return torch.stack([tensor.detach().double().reshape(()) for tensor in tensors]).tolist() if tensors else []


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` that reads losses from a GPU together, whenever they are logged.

    mmengine reads each loss after each iteration, so the host cannot prepare the next one while the GPU computes.
    Between two logs the message hub has the losses of the last log; the log's means are the same.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Keep the losses, and pass them on if they are logged now or are not on a GPU."""
        self._pending.append(dict(outputs or {}))
        if is_read_now(self, runner, batch_idx, self._pending[-1].values()):
            self._pass_on(runner, batch_idx)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Bring the history in a checkpoint up to date, where it is saved at another time than usual."""
        if self._pending:
            self._pass_on(runner, 0)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def _pass_on(self, runner: Any, batch_idx: int) -> None:
        pending, self._pending = self._pending, []
        tensors = [value for outputs in pending for value in outputs.values() if isinstance(value, Tensor)]
        values = iter(fetch(tensors))
        for outputs in pending:
            read = {key: next(values) if isinstance(value, Tensor) else value for key, value in outputs.items()}
            super().after_train_iter(runner, batch_idx, outputs=read)
