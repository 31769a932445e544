"""Autocast for operations with a backward pass of their own: cast once on entry, then switch it off."""

from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
from torch import Tensor


@overload
def cast_for_autocast(x: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...
@overload
def cast_for_autocast(x: Tensor, /, *tensors: Tensor) -> tuple[Tensor, ...]: ...


def cast_for_autocast(x: Tensor, /, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in autocast's dtype where it is on for the first one's device, else as they are."""
    device = x.device.type
    if not _knows_autocast(device) or not torch.is_autocast_enabled(device):
        return x, *tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *tensors))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switch autocast off for a device; ``meta`` and others know none."""
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


@torch.compiler.assume_constant_result  # torch.compile cannot look into it
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
