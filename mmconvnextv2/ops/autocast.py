"""Autocast for operations with a hand-written backward pass, and for methods that have to run in fp32.

The former cast their inputs once and run with autocast off: autocast stays active inside
``autograd.Function.forward``, where it would cast the operands of each operation separately.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, overload

import torch
from torch import Tensor


@overload
def cast_for_autocast(x: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...
@overload
def cast_for_autocast(x: Tensor, /, *tensors: Tensor) -> tuple[Tensor, ...]: ...


def cast_for_autocast(x: Tensor, /, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in the autocast dtype if autocast is on for the device of ``x``, otherwise unchanged."""
    dtype = _autocast_dtype(x.device.type)
    if dtype is None:
        return x, *tensors
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *tensors))


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the autocast dtype if autocast is on for the device of ``x``, otherwise its own."""
    return _autocast_dtype(x.device.type) or x.dtype


def _autocast_dtype(device: str) -> torch.dtype | None:
    if not _knows_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context with autocast off for a device; devices without autocast, such as ``meta``, need none."""
    return torch.autocast(device.type, enabled=False) if _knows_autocast(device.type) else nullcontext()


def excluding_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context in which autocast casts nothing, for operations that cast themselves.

    Cheaper than :func:`without_autocast`, but inside ``torch.is_autocast_enabled`` may still be True.
    """
    if torch.compiler.is_compiling():
        return without_autocast(x.device)
    return nullcontext() if _autocast_dtype(x.device.type) is None else torch._C._DisableAutocast()


def to_fp32(value: Any) -> Any:
    """Convert floating-point tensors to fp32, also inside lists, tuples and dicts; return everything else unchanged."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(to_fp32(each) for each in value)
    if type(value) is dict:
        return {key: to_fp32(each) for key, each in value.items()}
    return value


def in_fp32(method: Callable) -> Callable:
    """Return a method of an ``nn.Module`` that runs without autocast, on arguments converted by :func:`to_fp32`.

    Args:
        method (Callable): The method; its module needs at least one parameter, and its parameters have to be fp32.
    """

    @wraps(method)
    def run(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with without_autocast(next(self.parameters()).device):
            return method(self, *to_fp32(args), **to_fp32(kwargs))

    return run


@torch.compiler.assume_constant_result  # torch.compile cannot trace it
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
