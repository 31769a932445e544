"""Mixed-precision training on any device, since mmengine's ``AmpOptimWrapper`` rejects the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..utils.errors import UserError


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward under bfloat16 autocast.

    The loss is not scaled, since bfloat16 has the exponent range of float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward, inside mmengine's own context (gradient accumulation under DDP)."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class FP16OptimWrapper(AmpOptimWrapper):
    """Optimizer wrapper that runs the forward under float16 autocast and scales the loss.

    Equal to ``AmpOptimWrapper`` on a GPU; checkpoints of the two are interchangeable.

    Args:
        loss_scale (str | float | dict): ``'dynamic'``, a constant scale, or arguments of ``torch.amp.GradScaler``.
            Defaults to ``'dynamic'``.
        kwargs: See mmengine's ``OptimWrapper``.

    Raises:
        ValueError: If ``loss_scale`` is none of these.
    """

    def __init__(self, loss_scale: str | float | dict = 'dynamic', **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)  # skips AmpOptimWrapper's, which requires a GPU
        constant = isinstance(loss_scale, (int, float)) and loss_scale > 0
        if not (constant or loss_scale == 'dynamic' or isinstance(loss_scale, dict)):
            raise UserError(
                f"loss_scale={loss_scale!r}: expected 'dynamic', a positive number, or a dict of "
                'arguments of torch.amp.GradScaler'
            )
        options = dict(init_scale=float(loss_scale)) if constant else loss_scale if loss_scale != 'dynamic' else {}
        self.loss_scaler = torch.amp.GradScaler(get_device(), **options)
        self._scale_update_param = float(loss_scale) if constant else None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward, inside mmengine's own context (gradient accumulation under DDP)."""
        with OptimWrapper.optim_context(self, model), torch.autocast(get_device(), dtype=torch.float16):
            yield
