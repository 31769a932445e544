"""Which code runs: every question about device, dtype, hooks, export and compilation is asked here.

``docs/house.md`` has the answers as one table. A setting bounds them: ``kernels`` of the backbone (a config key, which
its blocks hand on in the :class:`~mmconvnextv2.ops.grid.Grid`), or else the environment variable
``MMCONVNEXTV2_KERNELS``, or else ``'auto'``:

- ``'auto'``: fused operations, as Triton kernels on CUDA tensors where Triton is installed.
- ``'torch'`` (in the environment also 0): fused operations, from torch's own.
- ``'layers'``: each layer by itself, as it is written in the block.

``TRITON_INTERPRET=1``, set before Python starts, has Triton's interpreter run kernels on CPU tensors, which is how they
are tested without a GPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from .grid import Grid

KERNELS = ('auto', 'torch', 'layers')
VARIABLE = 'MMCONVNEXTV2_KERNELS'
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HAS_INNER_PRODUCT = hasattr(torch.ops.mkldnn, '_linear_pointwise')
_given = os.environ.get(VARIABLE, 'auto')
_default = SimpleNamespace(kernels={'0': 'torch', '1': 'auto'}.get(_given, _given))  # checked when a model is built
SMALL_PATCH = 4  # sites along the side of cells whose windows are no faster than whole maps


def check_kernels(kernels: str | None) -> None:
    """Refuse an unknown setting of ``KERNELS``; None is the environment's.

    Raises:
        ValueError: If it is unknown.
    """
    name, setting = ('kernels', kernels) if kernels is not None else (VARIABLE, _default.kernels)
    if setting not in KERNELS:
        raise UserError(f'{name}={setting!r} is unknown: choose from {list(KERNELS)}')


def _is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # an import hook says no
        return False


HAS_TRITON = _is_installed('triton')


@contextmanager
def plain() -> Iterator[None]:
    """Run forwards inside without Triton kernels, unless the backbone's ``kernels`` asks for them; their backward
    passes follow them.

    Examples:
        >>> with plain():
        ...     maps = backbone(images)
    """
    before, _default.kernels = _default.kernels, 'torch'
    try:
        yield
    finally:
        _default.kernels = before


def _setting(grid: Grid | None) -> str:
    return (grid.kernels if grid is not None else None) or _default.kernels


def use_triton(tensor: Tensor, grid: Grid | None = None) -> bool:
    """Whether operations on this tensor may run as Triton kernels."""
    served = tensor.is_cuda or INTERPRETED and tensor.device.type == 'cpu'
    return _setting(grid) == 'auto' and HAS_TRITON and served and tensor.dtype in DTYPES


def choose_depthwise(sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> str:
    """Return which implementation convolves sites (B, N, C) with a depthwise layer, and normalises them.

    Returns:
        str: ``'triton+norm'``, one kernel for both layers; ``'triton'``; ``'cpu'``, torch's convolution with this
        package's backward pass; or ``'layer'``, the layer itself.
    """
    if _setting(grid) == 'layers' or not is_stock_depthwise(conv):
        return 'layer'
    same_dtype = sites.dtype == conv.weight.dtype or torch.is_autocast_enabled(sites.device.type)
    if use_triton(sites, grid) and same_dtype and sites.shape[-1] == conv.in_channels:
        return 'triton+norm' if norm is not None and _is_stock_norm(norm, conv.out_channels) else 'triton'
    # torch.compile is slow to trace the backward's tiles where sizes vary
    wants_gradients = torch.is_grad_enabled() and (sites.requires_grad or conv.weight.requires_grad)
    return 'cpu' if wants_gradients and in_blocks(sites) else 'layer'


def fuse_mlp(grid: Grid, expand: nn.Module, norm: nn.Module | None, project: nn.Module) -> bool:
    """Whether linear, GELU, GRN and linear run as one operation: stock layers, the published GRN, no hooks, no
    export."""
    if _setting(grid) == 'layers' or norm is None or not getattr(norm, 'is_published', False):
        return False
    stock = type(expand) is type(project) is nn.Linear
    return stock and not any(map(has_hooks, (expand, norm, project)))


def is_stock_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a layer is a plain depthwise convolution of stride 1 that keeps the size, and without hooks.

    Anything else runs as it is: torch's convolution says what is wrong with its input.
    """
    side = conv.kernel_size[0]
    stock = (
        type(conv) is nn.Conv2d
        and conv.groups == conv.in_channels == conv.out_channels
        and side % 2
        and conv.kernel_size == (side, side)
        and conv.padding == (side // 2, side // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == 'zeros'
    )
    return bool(stock) and not has_hooks(conv)


def _is_stock_norm(norm: nn.Module, channels: int) -> bool:
    if not isinstance(norm, nn.LayerNorm) or type(norm).forward is not nn.LayerNorm.forward:
        return False
    return norm.bias is not None and norm.normalized_shape == (channels,) and not has_hooks(norm)


def use_matmul(conv: nn.Conv2d) -> bool:
    """Whether a convolution whose stride is its side runs as one matrix product: a stock layer without hooks."""
    return type(conv) is nn.Conv2d and not has_hooks(conv)


def use_windows(grid: Grid) -> bool:
    """Whether the CPU convolves visible cells in windows around them; else in maps that are zero elsewhere."""
    return grid.patch > SMALL_PATCH


def use_packed_index(visible_cells: Tensor, grid: Grid) -> bool:
    """Whether a step on these cells gathers and scatters by rows: on the CPU, unless kernels find the neighbours."""
    return visible_cells.device.type == 'cpu' and grid.cell_slots is None


def use_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether oneDNN's inner product multiplies these matrices.

    torch may lack it, a user may switch it off, it refuses empty matrices, and torch.compile chooses for itself.
    """
    at_hand = HAS_INNER_PRODUCT and torch.backends.mkldnn.enabled
    suits = left.device.type == 'cpu' and left.dtype == right.dtype == torch.float32
    return bool(suits and at_hand and left.numel() and right.numel() and not torch.compiler.is_compiling())


def in_blocks(tensor: Tensor) -> bool:
    """Whether work on a tensor is cut into blocks that stay in the caches: on the CPU, where torch.compile does not
    fuse passes itself."""
    return tensor.device.type == 'cpu' and not torch.compiler.is_compiling()


def fold_scale(x: Tensor) -> bool:
    """Whether GRN's scale of x (B, N, C) goes into the second linear's weight: where an image has more sites than
    channels; on the CPU, where products of many images are slow, for one image alone."""
    return x.shape[1] > x.shape[2] and (len(x) == 1 or x.device.type != 'cpu')


def has_hooks(layer: nn.Module) -> bool:
    """Whether a layer has to run as it is: it has forward hooks, or is being exported."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or is_exported()


def is_exported() -> bool:
    """Whether the forward that runs is being recorded for export, where single layers and torch's own operations are
    wanted; torch.compile is not an export."""
    return torch.jit.is_tracing() or _is_exporting()


@torch.compiler.assume_constant_result  # torch.compile would take the answer to be yes
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()
