"""Half precision and compiled code for predictions and evaluations, on any device."""

import os
import shutil
from typing import Any

import torch
from torch import nn

from ...utils.errors import UserError
from ..model_state import unwrapped

AMP = ('float16', 'bfloat16')
MOST_SIZES = 64  # graphs of the backbone, one per image size


def accelerate(module: nn.Module, amp: str | None = None, compile: bool = False) -> None:
    """Let a model predict under autocast, and compile its backbone, in place; names of weights stay.

    GRN's norms, boxes, NMS and the losses of the recipes' heads stay in float32. Inductor compiles once per image size,
    64 at most; further sizes run uncompiled.

    Args:
        module (nn.Module): Model of MMDetection, MMSegmentation or MMPretrain, or one that wraps it.
        amp (str, optional): Autocast dtype, ``'float16'`` or ``'bfloat16'``. Defaults to None, float32.
        compile (bool): Compile the backbone with inductor. Defaults to False.

    Raises:
        ValueError: If the dtype is unknown, or inductor lacks a C++ compiler for the CPU.
    """
    model = unwrapped(module)
    model = model if hasattr(model, 'backbone') else model.module  # of test-time augmentation
    if amp is not None:
        if amp not in AMP:
            raise UserError(f'amp={amp!r} is unknown: choose from {list(AMP)}, or None for float32')
        _autocast(model, getattr(torch, amp))
    if compile:
        compiler = os.environ.get('CXX', 'g++')
        if next(model.parameters()).device.type == 'cpu' and not any(map(shutil.which, (compiler, 'clang++'))):
            raise UserError(f'compile: {compiler} was not found, which torch.compile needs for a CPU: install it')
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SIZES)
        model.backbone.compile(dynamic=False)


def _autocast(model: nn.Module, dtype: torch.dtype) -> None:
    """Run a model's forward under autocast, also where mmengine's test loop has turned autocast off."""
    entered: list[torch.autocast] = []

    def enter(module: nn.Module, *_: Any) -> None:
        entered.append(torch.autocast(next(module.parameters()).device.type, dtype=dtype))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
