"""Where operations run as Triton kernels, and where as torch's own operations.

Kernels serve CUDA tensors where Triton is installed. ``TRITON_INTERPRET=1``, set before Python starts, has Triton's
interpreter run them on CPU tensors, which is how they are tested without a GPU. ``MMCONVNEXTV2_KERNELS=0`` or
:func:`plain` keeps everything on torch's operations.
"""
import os
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Iterator

import torch
from torch import Tensor, nn

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_allowed = os.environ.get('MMCONVNEXTV2_KERNELS', '1') != '0'


def _is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # an import hook says no
        return False


HAS_TRITON = _is_installed('triton')


def uses_kernels(tensor: Tensor) -> bool:
    """Whether operations on this tensor run as Triton kernels."""
    served = tensor.is_cuda or INTERPRETED and tensor.device.type == 'cpu'
    return _allowed and HAS_TRITON and served and tensor.dtype in DTYPES


@contextmanager
def plain() -> Iterator[None]:
    """Run forwards inside on torch's own operations, without Triton kernels; their backward passes follow them.

    Examples:
        >>> with plain():
        ...     maps = backbone(images)
    """
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def is_exported() -> bool:
    """Whether the forward that runs is being recorded for export, where single layers and torch's own operations are
    wanted; torch.compile is no export."""
    return torch.jit.is_tracing() or _is_exporting()


def is_watched(layer: nn.Module) -> bool:
    """Whether a layer has to run as it is: it has forward hooks, or is being exported."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or is_exported()


@torch.compiler.assume_constant_result  # torch.compile would take the answer to be yes
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()
