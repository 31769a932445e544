"""Choice of implementation: every check of device, dtype, hooks, export and compilation is in this file.

``docs/house.md`` lists the outcomes in one table. A setting limits them: ``kernels`` of the backbone (a config key that
its blocks pass on in the :class:`~mmconvnextv2.ops.grid.Grid`), otherwise the environment variable
``MMCONVNEXTV2_KERNELS``, otherwise ``'auto'``:

- ``'auto'``: fused operations, as Triton kernels on CUDA tensors if Triton is installed. With
  ``torch.backends.cudnn.benchmark`` they are timed against torch's operations, and the faster ones stay.
- ``'triton'``: the same without timing.
- ``'torch'`` (or 0 in the environment): fused operations, composed of torch's own.
- ``'layers'``: each layer by itself, in the order the block is written.

With ``TRITON_INTERPRET=1``, set before Python starts, Triton's interpreter runs kernels on CPU tensors. The tests use
it where there is no GPU.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack

from ..utils.errors import UserError
from .autocast import autocast_dtype
from .grid import SLOT_BORDER, Grid

KERNELS = ('auto', 'triton', 'torch', 'layers')
VARIABLE = 'MMCONVNEXTV2_KERNELS'
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
PATCHES = (1, 2, 4, 8)  # sites along a cell's side that depthwise kernels serve
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HAS_INNER_PRODUCT = hasattr(torch.ops.mkldnn, '_linear_pointwise')
_given = os.environ.get(VARIABLE, 'auto')
_default = SimpleNamespace(kernels={'0': 'torch', '1': 'auto'}.get(_given, _given))  # checked when a model is built
_passed: dict[tuple, bool] = {}  # results of the self-check by device and dtypes
FOLD_FROM = 3  # sites per channel
TILE, WAVE, SHORTEST = 128, 264, 1024  # side of a product's tile, tiles that fill a GPU, sites of a part
SMALL_PATCH = 4  # up to this many sites along a cell's side, windows are not faster than whole maps


def check_kernels(kernels: str | None) -> None:
    """Raise ``ValueError`` if a setting is not one of ``KERNELS``; None checks the environment's.

    Raises:
        ValueError: If the setting is unknown.
    """
    name, setting = ('kernels', kernels) if kernels is not None else (VARIABLE, _default.kernels)
    if setting not in KERNELS:
        raise UserError(f'{name}={setting!r} is unknown: choose from {list(KERNELS)}')


def _is_installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # raised by an import hook that blocks the package
        return False


HAS_TRITON = _is_installed('triton')


@contextmanager
def plain() -> Iterator[None]:
    """Run forwards in this block without Triton kernels, unless the backbone's ``kernels`` is set.

    The setting is read in the forward, so backward passes may run outside of the block.

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
    """Return whether operations on this tensor run as Triton kernels.

    Before they first do on a device and dtype, :mod:`mmconvnextv2.ops.self_check` compares them with the layers.
    """
    served = tensor.is_cuda or INTERPRETED and tensor.device.type == 'cpu'
    if _setting(grid) not in ('auto', 'triton') or not HAS_TRITON or not served or tensor.dtype not in DTYPES:
        return False
    return _kernels_pass(tensor.device, tensor.dtype, autocast_dtype(tensor))


def times_kernels(grid: Grid | None = None) -> bool:
    """Return whether kernels are timed against torch's operations: where cuDNN times its algorithms, in eager mode."""
    cudnn = torch.backends.cudnn
    if torch.compiler.is_compiling() or not cudnn.benchmark or _setting(grid) != 'auto':  # as a rule, so it comes first
        return False
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    if deterministic or is_exported() or _len_torch_dispatch_stack():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


@torch.compiler.assume_constant_result  # not part of a compiled graph
def _kernels_pass(device: torch.device, dtype: torch.dtype, computed: torch.dtype) -> bool:
    key = device, dtype, computed
    if key not in _passed:
        # Fake tensors need no GPU, and what a captured graph launches must not be synchronised
        if device.type == 'cuda' and (not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing()):
            return True
        _passed[key] = _default.check(*key)
    return _passed[key]


def set_check(check: Callable[[torch.device, torch.dtype, torch.dtype], bool]) -> None:
    """Set the function that says whether kernels work on a device and dtype, with results in another dtype.

    ``ops.self_check`` sets its own: it compares what this module chooses between, so this module cannot import it.
    """
    _default.check = check


def choose_depthwise(sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> str:
    """Choose the implementation of a depthwise layer, with the norm that follows, on sites (B, N, C).

    Returns:
        str: ``'triton+norm'``, one operator for both layers; ``'triton'``, one for the convolution; ``'cpu'``, torch's
        convolution with this package's backward pass; or ``'layer'``, the layer itself.
    """
    if _setting(grid) == 'layers' or not is_stock_depthwise(conv):
        return 'layer'
    same_dtype = sites.dtype == conv.weight.dtype or torch.is_autocast_enabled(sites.device.type)
    served = not grid.is_packed or grid.patch in PATCHES and conv.kernel_size[0] // 2 <= SLOT_BORDER
    if served and use_triton(sites, grid) and same_dtype and sites.shape[-1] == conv.in_channels:
        return 'triton+norm' if norm is not None and _is_stock_norm(norm, conv.out_channels) else 'triton'
    # The gain is in the backward pass. Compiled code keeps the layer (in_blocks is False): torch.compile is slow to
    # trace the backward's tiles where sizes vary
    needs_gradients = torch.is_grad_enabled() and (sites.requires_grad or conv.weight.requires_grad)
    return 'cpu' if needs_gradients and in_blocks(sites) else 'layer'


def fuse_mlp(grid: Grid, expand: nn.Module, norm: nn.Module | None, project: nn.Module) -> bool:
    """Return whether linear, GELU, GRN and linear run as one operation.

    They do for stock layers and the published GRN, without hooks and outside of export.
    """
    if _setting(grid) == 'layers' or norm is None or not getattr(norm, 'is_published', False):
        return False
    stock = type(expand) is type(project) is nn.Linear
    return stock and not any(map(has_hooks, (expand, norm, project)))


def fuse_block(
    sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module, expand: nn.Module, response_norm: nn.Module | None,
    project: nn.Module,
) -> bool:  # fmt: skip
    """Return whether a whole block runs as one operation on sites (B, N, C): where kernels serve all of its layers.

    Compilers see the operations one by one, which they fuse with others, and so does the comparison of times.
    """
    if torch.compiler.is_compiling() or grid.site_mask is not None or times_kernels(grid):
        return False
    fused = choose_depthwise(sites, grid, conv, norm) == 'triton+norm'
    return fused and fuse_mlp(grid, expand, response_norm, project)


def call(operator: Any, tensor: Tensor, *arguments: Any) -> Any:
    """Call a custom operator; plain tensors in eager mode take its function directly.

    Going through torch's dispatcher in Python takes longer than a launch. Compilers, exporters, counters of operations
    and tensors without data need it.
    """
    plain_call = type(tensor) is Tensor and not torch.compiler.is_compiling() and not _len_torch_dispatch_stack()
    return (operator._init_fn if plain_call else operator)(tensor, *arguments)


def fuse_residual(grid: Grid | None) -> bool:
    """Return whether drop path and the sum with a block's input run as one operation; compilers fuse them anyway."""
    return _setting(grid) != 'layers' and not torch.compiler.is_compiling() and not is_exported()


def is_stock_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a layer is a plain depthwise convolution of stride 1 that keeps the size and has no hooks.

    Anything else is left to the layer itself; invalid inputs fall through to torch, which raises.
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
    # A subclass that keeps forward, as models.layers.LayerNorm does, computes what the kernel computes
    if not isinstance(norm, nn.LayerNorm) or type(norm).forward is not nn.LayerNorm.forward:
        return False
    return norm.bias is not None and norm.normalized_shape == (channels,) and not has_hooks(norm)


def use_matmul(conv: nn.Conv2d) -> bool:
    """Return whether a convolution of stride k and side k runs as one matrix product: a stock layer without hooks."""
    return type(conv) is nn.Conv2d and not has_hooks(conv)


def use_windows(grid: Grid) -> bool:
    """Return whether the CPU convolves windows around visible cells, rather than maps that are zero elsewhere."""
    return grid.patch > SMALL_PATCH


def use_packed_index(visible_cells: Tensor, grid: Grid) -> bool:
    """Return whether to gather and scatter by rows: on the CPU, unless interpreted kernels find the neighbours."""
    return visible_cells.device.type == 'cpu' and grid.cell_slots is None


def use_onednn(left: Tensor, right: Tensor) -> bool:
    """Return whether oneDNN's inner product multiplies these matrices.

    torch may be built without it, a user may disable it, and it rejects empty matrices. Under torch.compile, inductor
    makes its own choice.
    """
    available = HAS_INNER_PRODUCT and torch.backends.mkldnn.enabled
    suitable = left.device.type == 'cpu' and left.dtype == right.dtype == torch.float32
    return bool(suitable and available and left.numel() and right.numel() and not torch.compiler.is_compiling())


def in_blocks(tensor: Tensor) -> bool:
    """Return whether work on a tensor is cut into blocks that fit the caches: on the CPU in eager mode.

    Under torch.compile the passes are fused, so blocks would gain nothing.
    """
    return tensor.device.type == 'cpu' and not torch.compiler.is_compiling()


def select_bits(tensor: Tensor) -> bool:
    """Return whether values are selected by their bits: on the CPU in eager mode, for tensors that hold data."""
    return in_blocks(tensor) and type(tensor) is Tensor and not is_exported() and not _len_torch_dispatch_stack()


def fold_scale(x: Tensor) -> bool:
    """Return whether GRN's scale of x (B, N, C) is folded into the second linear's weight.

    On a GPU, by a count of the values moved per image: folding saves two of twelve passes over the features, 8 C N, and
    adds six over a weight or gradient per image, 24 C * C, so it gains from N = 3 C on. On the CPU it gains where an
    image has more sites than channels, but only for a single image: batched products are slow.
    """
    if x.device.type == 'cpu':
        return len(x) == 1 and x.shape[1] > x.shape[2]
    return x.shape[1] > FOLD_FROM * x.shape[2]


def count_parts(num_images: int, num_sites: int, channels: int, hidden: int) -> int:
    """Return into how many parts the sites of an image are cut for the folded product (B, C, D), summed over sites.

    A GPU computes a product in tiles of about 128 x 128, and few images have fewer tiles than it has multiprocessors:
    parts, powers of two of at least 1,024 sites each, give all of them work.
    """
    parts, tiles = 1, num_images * -(-channels // TILE) * -(-hidden // TILE)
    while tiles * parts * 2 <= WAVE and num_sites % (parts * 2) == 0 and num_sites // (parts * 2) >= SHORTEST:
        parts *= 2
    return parts


def has_hooks(layer: nn.Module) -> bool:
    """Return whether a layer must be called itself: it has forward hooks, or it is being exported."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or is_exported()


def is_exported() -> bool:
    """Return whether the current forward is recorded for export; torch.compile does not count.

    Exported graphs should consist of single layers and torch's own operations.
    """
    return torch.jit.is_tracing() or _is_exporting()


@torch.compiler.assume_constant_result  # traced, is_exporting() would be True under torch.compile too
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


def describe_kernels(device: str, kernels: str | None = None) -> str:
    """Return in words which implementation serves a block's operations on a device, as the plan of a run prints it.

    Args:
        device (str): ``'cpu'`` or ``'cuda'``.
        kernels (str, optional): The backbone's ``kernels``. Defaults to None, the environment's.
    """
    setting = kernels or _default.kernels
    if setting == 'layers':
        return 'layer by layer'
    if setting in ('auto', 'triton') and HAS_TRITON and (device == 'cuda' or INTERPRETED):
        return 'fused, Triton kernels'
    return 'fused, torch operations'
