"""FiniteLossHook: stop at, or skip, updates whose loss or gradients are not finite."""

import logging
import math
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor

from ...utils.errors import RunError, UserError


def image_names(batch: Any) -> list[str]:
    """Return the image files of a batch from a data loader."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return [str(getattr(sample, 'img_path', '?')) for sample in samples or []]


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at a loss or gradient that is NaN or infinite, or skip up to a maximum of such updates; log the images.

    A bad update changes neither weights nor moments. A fused optimizer gets the flag on the device without a
    synchronisation (torch's ``found_inf``) and skips the step. For other optimizers the gradients are removed before
    the step, which makes the host wait for the device. Under fp16 the loss scaler skips the step. No checkpoint is
    written between a bad update and the end of the run.

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
        self._found = None  # whether this iteration's step found a bad gradient
        self._bad = []
        self._images = []  # of the batches since the last update

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
        images = self._images + image_names(data_batch)
        updates = runner.optim_wrapper.should_update()
        self._images = [] if updates else images
        loss = float(torch.as_tensor((outputs or {}).get('loss', 0.0)).detach())
        if not math.isfinite(loss):
            self._bad.append(f'loss {loss} in process {get_rank()} of {", ".join(image_names(data_batch))}')
            print_log(f'iteration {runner.iter + 1}: {self._bad[-1]}', 'current', logging.ERROR)
        skipped, self._found = self._found is not None and bool(self._found), None
        if not skipped and not (self._bad and updates):
            return
        found = '; '.join(self._bad) or f'gradients that are not finite in process {get_rank()} of {", ".join(images)}'
        self._bad = []
        self._num_skips += 1
        runner.message_hub.update_info('num_skipped_updates', self._num_skips)
        if self._num_skips > self.max_skips:
            raise RunError(
                f'stopped at iteration {runner.iter + 1}: {found}. --resume continues from the last checkpoint, '
                'which was saved before that. Check those images, lower the learning rate, or raise '
                f'default_hooks.finite_loss.max_skips, which is {self.max_skips}'
            )
        print_log(
            f'iteration {runner.iter + 1}: skipped an update, {self._num_skips} of at most {self.max_skips}: {found}',
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
        if optimizer.defaults.get('fused'):
            optimizer.found_inf = self._found.float()
        elif self._found:
            for parameter in parameters:
                parameter.grad = None

    @torch.compiler.disable
    def _forget(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._found is not None and optimizer.defaults.get('fused'):
            del optimizer.found_inf


def _not_finite(gradients: list[Tensor]) -> Tensor:
    """Return whether any element of the gradients is NaN or infinite, as a bool scalar on their device."""
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
    return ~torch.isfinite(norm)
