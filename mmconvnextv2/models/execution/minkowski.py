"""Execution on visible sites by MinkowskiEngine 0.5.4, the engine of the official FCMAE code (optional).

Between operations, sites (B, N, C) are in the order of ``packed``; MinkowskiEngine has its own row order. Unlike in the
official encoder, parameters are dense weights that each call converts to sparse kernels, so checkpoints do not change.
``MinkowskiChannelwiseConvolution`` replaces a depthwise class that only a CUDA fork has. MinkowskiEngine is imported
only when the execution is chosen.
"""

import collections
import collections.abc
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.grid import Grid
from ...ops.reductions import statistics_dtype
from ...utils.errors import UserError
from .packed import Packed


@contextmanager
def _names_of_old_python() -> Iterator[None]:
    """Restore ``collections.Sequence`` inside the block: Python 3.10 removed it, and MinkowskiEngine imports it."""
    missing = not hasattr(collections, 'Sequence')
    if missing:
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]  # removed in 3.10
    try:
        yield
    finally:
        if missing:
            del collections.Sequence  # type: ignore[attr-defined]


def import_minkowski_engine() -> ModuleType:
    """Return the module ``MinkowskiEngine``.

    Raises:
        ImportError: If it is missing or fails to import, with the reason and how to install it.
    """
    try:
        with _names_of_old_python(), warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'The MinkowskiEngine was compiled with CPU_ONLY')
            return importlib.import_module('MinkowskiEngine')
    except Exception as error:  # a broken build fails in many ways: missing libraries, symbols, attributes
        raise ImportError(
            f"execution='minkowski' needs MinkowskiEngine 0.5.4, whose import failed with "
            f'{type(error).__name__}: {error}. Install it with `make minkowski`, or choose '
            "execution='packed', which computes the same without it"
        ) from error


@dataclass(frozen=True)
class SparseGrid(Grid):
    """Grid whose sites are registered with MinkowskiEngine.

    Args:
        manager (MinkowskiEngine.CoordinateManager): Coordinate manager with the coordinates of all stages of a forward.
        key (MinkowskiEngine.CoordinateMapKey): Key of this stage's coordinates.
        to_ours (Tensor): MinkowskiEngine's row of each of our sites; long, (B * N, ).
        to_theirs (Tensor): Inverse permutation; long, (B * N, ).
    """

    manager: Any = None
    key: Any = None
    to_ours: Tensor | None = None
    to_theirs: Tensor | None = None

    def rows(self, sites: Tensor) -> Tensor:
        """Reorder our sites (B, N, C) to MinkowskiEngine's rows (B * N, C), in at least float32."""
        return sites.flatten(0, 1)[self.to_theirs].to(statistics_dtype(sites.dtype))

    def sites(self, rows: Tensor, like: Tensor) -> Tensor:
        """Reorder MinkowskiEngine's rows (B * N, C) to our sites (B, N, C), with the dtype and batch of ``like``."""
        return rows[self.to_ours].unflatten(0, (len(like), -1)).to(like.dtype)

    def entered(self, manager: Any, key: Any) -> 'SparseGrid':
        """Return this grid with the coordinates of ``key``, matched to our site order.

        MinkowskiEngine's row order is unspecified on a GPU and after striding, so sites are matched by raster number.
        """
        theirs = manager.get_coordinates(key).long()  # (B * N, 3): image, row, column in sites of stage 1
        theirs[:, 1:] //= 8 * self.stride // self.cell
        sorted_numbers, order = self._raster_number(theirs).sort()
        ours = self._raster_number(site_coordinates(self).long())
        to_ours = order[torch.searchsorted(sorted_numbers, ours)]
        return replace(self, manager=manager, key=key, to_ours=to_ours, to_theirs=to_ours.argsort())

    def _raster_number(self, coordinates: Tensor) -> Tensor:
        image, row, column = coordinates.unbind(1)
        return (image * self.height + row) * self.width + column


def site_coordinates(grid: Grid) -> Tensor:
    """Return (image, row, column) of each visible site in packed order, in sites of this stage: int32, (B * N, 3)."""
    cells, patch = grid.cells, grid.patch
    image = torch.arange(len(cells), device=cells.device).view(-1, 1, 1, 1)
    inside = torch.arange(patch, device=cells.device)
    columns = grid.width // patch
    row = (cells // columns * patch)[..., None, None] + inside[:, None]  # (B, K, p, 1)
    column = (cells % columns * patch)[..., None, None] + inside  # (B, K, 1, p)
    parts = torch.broadcast_tensors(image, row, column)  # each (B, K, p, p)
    return torch.stack(parts, dim=-1).view(-1, 3).int()


def depthwise_kernel(weight: Tensor) -> Tensor:
    """Convert a dense depthwise weight (C, 1, k, k) to (k * k, C), where the row offset runs fastest."""
    return weight.squeeze(1).permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def strided_kernel(weight: Tensor) -> Tensor:
    """Convert a dense weight (Cout, Cin, k, k) to (k * k, Cin, Cout), where the row offset runs fastest."""
    return weight.permute(3, 2, 1, 0).flatten(0, 1).contiguous()


class Minkowski(Packed):
    """Sparse convolutions of MinkowskiEngine for the depthwise and the downsampling layers.

    Half precision is computed in float32, since MinkowskiEngine has no half-precision kernels.

    Raises:
        ImportError: If MinkowskiEngine cannot be imported.
    """

    name = 'minkowski'

    def __init__(self) -> None:
        import_minkowski_engine()

    def enter(
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        stem: Callable[[Tensor], Tensor],
        stride: int = 4,
        border: int = 0,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        if valid_pixels is not None:
            raise UserError(
                "execution='minkowski' visits all sites of visible cells, those without a valid pixel too: choose "
                "execution='packed', or valid_sites=False"
            )
        sites, grid = super().enter(images, visible_cells, stem, stride, border)
        manager = new_manager(images.device)
        key, _ = manager.insert_and_map(site_coordinates(grid).contiguous(), [1, 1])
        sparse = SparseGrid(**{field.name: getattr(grid, field.name) for field in fields(Grid)})
        return sites, sparse.entered(manager, key)

    def depthwise(self, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
        assert isinstance(grid, SparseGrid)  # created by enter
        engine, rows = import_minkowski_engine(), grid.rows(sites)
        with torch.random.fork_rng(devices=[]):  # the layer initialises weights that are never used
            layer = engine.MinkowskiChannelwiseConvolution(conv.in_channels, conv.kernel_size[0], dimension=2)
        tensor = engine.SparseTensor(rows, coordinate_map_key=grid.key, coordinate_manager=grid.manager)
        kernel = depthwise_kernel(conv.weight).to(rows.dtype)  # (49, C)
        output = torch.func.functional_call(layer, {'kernel': kernel}, (tensor,)).F
        sites = grid.sites(output if conv.bias is None else output + conv.bias.to(rows.dtype), sites)
        return sites if norm is None else norm(sites)

    def downsample(self, sites: Tensor, grid: Grid, conv: nn.Conv2d) -> tuple[Tensor, Grid]:
        assert isinstance(grid, SparseGrid)  # created by enter
        engine, rows, manager = import_minkowski_engine(), grid.rows(sites), grid.manager
        generator = engine.KernelGenerator(conv.kernel_size[0], conv.stride[0], dimension=2)
        key = manager.stride(grid.key, conv.stride[0])
        kernel = strided_kernel(conv.weight).to(rows.dtype)  # (4, Cin, Cout)
        mode = importlib.import_module('MinkowskiEngineBackend._C').ConvolutionMode.DEFAULT
        output = engine.MinkowskiConvolutionFunction.apply(rows, kernel, generator, mode, grid.key, key, manager)
        grid = grid.halved().entered(manager, key)
        assert conv.bias is not None  # downsampling layers have one
        return grid.sites(output + conv.bias.to(rows.dtype), sites), grid


def new_manager(device: torch.device) -> Any:
    """Return an empty coordinate manager for tensors on ``device``.

    Raises:
        ValueError: If the installed MinkowskiEngine cannot use the device.
    """
    engine = import_minkowski_engine()
    if device.type == 'cuda' and not engine.is_cuda_available():
        raise UserError(
            f"execution='minkowski' got images on {device}, but the installed MinkowskiEngine was built "
            "for the CPU: choose execution='packed', train on the CPU, or build MinkowskiEngine with CUDA"
        )
    if device.type not in ('cpu', 'cuda'):
        raise UserError(
            f"execution='minkowski' got images on {device}: MinkowskiEngine runs on cpu and cuda; "
            "choose execution='packed'"
        )
    kind = engine.CoordinateMapType
    return engine.CoordinateManager(
        D=2, num_threads=torch.get_num_threads(), coordinate_map_type=kind.CUDA if device.type == 'cuda' else kind.CPU
    )
