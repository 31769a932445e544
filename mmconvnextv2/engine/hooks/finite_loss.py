"""FiniteLossHook: stop at, or skip, updates whose loss or gradients are not finite."""

import logging
import math
from typing import Any, NamedTuple

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor

from ...utils.errors import RunError, UserError
from .runtime_info import fetch, is_read_now


def image_names(batch: Any) -> list[str]:
    """Return the image files of a batch from a data loader."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return [str(getattr(sample, 'img_path', '?')) for sample in samples or []]


class Iteration(NamedTuple):
    """What is known of an iteration before its values are read from the device.

    Args:
        number (int): Iteration, from 1.
        images (list[str]): Its images.
        updated (list[str], optional): Images since the last update; None unless this iteration updates the weights.
        loss (Tensor): Loss.
        found (Tensor, optional): Whether a gradient was not finite; None if the step did not look.
    """

    number: int
    images: list[str]
    updated: list[str] | None
    loss: Tensor
    found: Tensor | None


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at a loss or gradient that is NaN or infinite, or skip up to a maximum of such updates; log the images.

    A bad update changes neither weights nor moments. A fused optimizer gets the flag on the device without a
    synchronisation (torch's ``found_inf``) and skips the step. For other optimizers the gradients are removed before
    the step, which makes the host wait for the device. Under fp16 the loss scaler skips the step. Losses and flags on a
    GPU are read where losses are logged or a checkpoint is saved, in all processes, so no checkpoint is written between
    a bad update and the end of the run.

    Args:
        max_skips (int): Maximum number of skipped updates in the whole run, including those before a resume. Defaults
            to 0, which stops at the first.

    Raises:
        ValueError: If ``max_skips`` is negative.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise UserError(f'max_skips={max_skips} of FiniteLossHook: expected 0 or more')
        self.max_skips = max_skips
        self._num_skips = 0
        self._found: Tensor | None = None  # whether this iteration's step found a bad gradient
        self._bad: list[str] = []
        self._images: list[str] = []  # of the batches since the last update
        self._unread: list[Iteration] = []

    def before_train(self, runner) -> None:
        """Register the gradient check before each optimizer step, and restore the count of skipped updates."""
        self._num_skips = runner.message_hub.runtime_info.get('num_skipped_updates', 0)
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self._look_at_gradients)
        optimizer.register_step_post_hook(self._forget)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Log the images of a bad loss, and count a bad update.

        Raises:
            RuntimeError: If more than ``max_skips`` updates were bad.
        """
        images = image_names(data_batch)
        self._images += images
        updated = self._images if runner.optim_wrapper.should_update() else None
        if updated is not None:
            self._images = []
        loss = torch.as_tensor((outputs or {}).get('loss', 0.0)).detach()
        self._unread.append(Iteration(runner.iter + 1, images, updated, loss, self._found))
        self._found = None
        if is_read_now(self, runner, batch_idx, [loss]):
            self._read(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Stop before a checkpoint is saved after a bad update, or count the updates skipped so far in it.

        Raises:
            RuntimeError: If more than ``max_skips`` updates were bad.
        """
        if self._unread:
            self._read(runner)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def _read(self, runner: Any) -> None:
        """Read losses and flags of the iterations since the last time, and look at them one after the other."""
        unread, self._unread = self._unread, []
        losses = fetch([iteration.loss for iteration in unread])
        flags = iter(fetch([iteration.found for iteration in unread if iteration.found is not None]))
        for iteration, loss in zip(unread, losses, strict=True):
            self._look_at(runner, iteration, loss, iteration.found is not None and bool(next(flags)))

    def _look_at(self, runner: Any, iteration: Iteration, loss: float, skipped: bool) -> None:
        number, images, updated, *_ = iteration
        if not math.isfinite(loss):
            self._bad.append(f'loss {loss} in process {get_rank()} of {", ".join(images)}')
            print_log(f'iteration {number}: {self._bad[-1]}', 'current', logging.ERROR)
        if not skipped and not (self._bad and updated is not None):
            return
        found = '; '.join(self._bad) or (
            f'gradients that are not finite in process {get_rank()} of {", ".join(updated or images)}'
        )
        self._bad = []
        self._num_skips += 1
        runner.message_hub.update_info('num_skipped_updates', self._num_skips)
        if self._num_skips > self.max_skips:
            raise RunError(
                f'stopped at iteration {number}: {found}. --resume continues from the last checkpoint, '
                'which was saved before that. Check those images, lower the learning rate, or raise '
                f'default_hooks.finite_loss.max_skips, which is {self.max_skips}'
            )
        print_log(
            f'iteration {number}: skipped an update, {self._num_skips} of at most {self.max_skips}: {found}',
            'current',
            logging.WARNING,
        )

    @torch.compiler.disable  # a graph of a whole training step cannot set attributes of the optimizer
    def _look_at_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Make the optimizer skip the step if a gradient is not finite; a loss scaler does so itself."""
        if getattr(optimizer, 'found_inf', None) is not None:
            return
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group['params'] if parameter.grad is not None
        ]
        if not parameters:
            return
        self._found = _not_finite([parameter.grad for parameter in parameters])
        if _is_fused(optimizer):
            optimizer.found_inf = self._found.float()
        elif self._found:
            for parameter in parameters:
                parameter.grad = None

    @torch.compiler.disable
    def _forget(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._found is not None and _is_fused(optimizer):
            del optimizer.found_inf


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether all steps are fused; a checkpoint of another optimizer may have changed the groups."""
    return all(group.get('fused') for group in optimizer.param_groups)


def _not_finite(gradients: list[Tensor]) -> Tensor:
    """Return whether any element of the gradients is NaN or infinite, as a bool scalar on their device."""
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
    return ~torch.isfinite(norm)
