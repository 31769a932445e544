"""Autocast for operations with a hand-written backward pass: cast inputs once, then run with autocast off.

Autocast stays active inside ``autograd.Function.forward``, where it would cast the operands of each operation
separately.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
from torch import Tensor


@overload
def cast_for_autocast(x: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...
@overload
def cast_for_autocast(x: Tensor, /, *tensors: Tensor) -> tuple[Tensor, ...]: ...


def cast_for_autocast(x: Tensor, /, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in the autocast dtype if autocast is on for the device of ``x``, otherwise unchanged."""
    device = x.device.type
    if not _knows_autocast(device) or not torch.is_autocast_enabled(device):
        return x, *tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *tensors))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context with autocast off for a device; devices without autocast, such as ``meta``, need none."""
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


@torch.compiler.assume_constant_result  # torch.compile cannot trace it
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
