"""Depthwise convolution, and LayerNorm of its result, over sites (B, N, C) by Triton kernels.

Sites are those of a whole map in raster order, or only those of visible cells. Neighbours of the latter are found
through an index of cells, so no map is built, nor kept for the backward pass. The references are the layers in the
executions. Kernels are wrapped as custom operators with fake implementations, so torch.compile does not trace into
them.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from .autocast import autocast_dtype, excluding_autocast
from .dispatch import call
from .grid import LIST_LENGTH, Grid
from .reductions import statistics_dtype


def depthwise_sites(sites: Tensor, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """Convolve each channel of sites over its neighbours.

    Args:
        sites (Tensor): Sites of shape (B, N, C).
        conv (nn.Conv2d): Depthwise layer of stride 1 that keeps the size.
        grid (Grid): Geometry of the sites.

    Returns:
        Tensor: Sites of shape (B, N, C); in the autocast dtype under autocast, where only this result is rounded.

    Raises:
        RuntimeError: By torch, if a second derivative is requested; ``kernels='layers'`` supports it.
    """
    dtype = autocast_dtype(sites)
    with excluding_autocast(sites):
        return _Depthwise.apply(sites.contiguous(), conv.weight, conv.bias, dtype, *grid.kernel_arguments())


def depthwise_norm_sites(sites: Tensor, conv: nn.Conv2d, norm: nn.LayerNorm, grid: Grid) -> Tensor:
    """Apply LayerNorm to :func:`depthwise_sites`, as one operator whose backward pass shares kernels.

    Under autocast the result is in the autocast dtype; LayerNorm computes in float32 for half precision.
    """
    dtype = autocast_dtype(sites)
    keep = torch.is_grad_enabled()  # without gradients the kernel need not store what backward reads
    with excluding_autocast(sites):
        return _DepthwiseNorm.apply(
            sites.contiguous(),
            conv.weight,
            conv.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            keep,
            dtype,
            *grid.kernel_arguments(),
        )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sites: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *where: Any) -> Tensor:
        output, taps = call(site_depthwise, sites, weight, bias, dtype, *where)
        ctx.save_for_backward(sites, taps)
        ctx.where, ctx.dtype = where, weight.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_sites, *needs = ctx.needs_input_grad[:3]
        gradients = call(
            site_depthwise_backward,
            grad.contiguous(),
            *ctx.saved_tensors,
            needs_sites,
            any(needs),
            ctx.dtype,
            *ctx.where,
        )
        return *_wanted(gradients, (needs_sites, *needs)), None, *[None] * len(ctx.where)


class _DepthwiseNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        sites: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        keep: bool,
        dtype: torch.dtype,
        *where: Any,
    ) -> Tensor:
        convolved, normed, mean, rstd, taps = call(
            site_depthwise_norm, sites, weight, bias, norm_weight, norm_bias, eps, keep, dtype, *where
        )
        ctx.save_for_backward(sites, taps, convolved, mean, rstd, norm_weight)
        ctx.where, ctx.dtype = where, weight.dtype
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        sites, taps, *normalised = ctx.saved_tensors
        needs_sites, *needs = ctx.needs_input_grad[:5]
        # Normalised values are not kept: convolved sites, mean and rstd give them again
        gradients = call(
            site_depthwise_norm_backward,
            grad.contiguous(),
            sites,
            taps,
            needs_sites,
            any(needs),
            ctx.dtype,
            *normalised,
            *ctx.where,
        )
        return *_wanted(gradients, (needs_sites, *needs)), None, None, None, *[None] * len(ctx.where)


def _wanted(gradients: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True)]


@custom_op('mmconvnextv2::site_depthwise', mutates_args=())
def site_depthwise(
    sites: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return convolved sites in ``dtype``, and the weight as taps (k * k, C), which backward reads."""
    return _convolve(sites, weight, bias, dtype, (height, width, patch, cells, slots, lists))


@site_depthwise.register_fake
def _(sites, weight, bias, dtype, height, width, patch, cells, slots, lists=None):
    return torch.empty_like(sites, dtype=dtype), _empty_taps(weight)


@custom_op('mmconvnextv2::site_depthwise_norm', mutates_args=())
def site_depthwise_norm(
    sites: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep: bool,
    dtype: torch.dtype,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return convolved and normalised sites in ``dtype``, mean and rstd (B, N), and taps (k * k, C).

    Convolved sites, mean and rstd are empty unless ``keep`` is set.
    """
    from .kernels import layer_norm

    convolved, taps = _convolve(sites, weight, bias, dtype, (height, width, patch, cells, slots, lists))
    normed, mean, rstd = layer_norm.forward(convolved, norm_weight, norm_bias, eps, keep)
    return convolved if keep else convolved.new_empty(0, 0, sites.shape[2]), normed, mean, rstd, taps


@site_depthwise_norm.register_fake
def _(sites, weight, bias, norm_weight, norm_bias, eps, keep, dtype, height, width, patch, cells, slots, lists=None):
    kept = sites.shape[:2] if keep else (0, 0)
    mean, rstd = (sites.new_empty(kept, dtype=statistics_dtype(sites.dtype)) for _ in range(2))
    convolved = sites.new_empty((*kept, sites.shape[2]), dtype=dtype)
    return convolved, torch.empty_like(sites, dtype=dtype), mean, rstd, _empty_taps(weight)


@custom_op('mmconvnextv2::site_depthwise_backward', mutates_args=())
def site_depthwise_backward(
    grad: Tensor,
    sites: Tensor,
    taps: Tensor,
    needs_sites: bool,
    needs_parameters: bool,
    dtype: torch.dtype,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of sites, and, in ``dtype``, of weight (C, 1, k, k) and bias (C, ); empty unless needed."""
    from .kernels import depthwise

    geometry = height, width, patch, cells, slots, lists
    grad_sites, grad_weight, grad_bias = empty_gradients(sites, taps, needs_sites, needs_parameters, dtype, 1)
    if needs_sites:  # stride 1: the gradient is a convolution with the flipped kernel, over the same sites
        depthwise.convolve(grad, taps, None, grad_sites, geometry, mirrored=True)
    if needs_parameters:
        depthwise.finish(depthwise.weight_gradient(sites, grad, grad_weight.shape[-1], geometry), grad_weight)
        torch.sum(grad, (0, 1), dtype=dtype, out=grad_bias)
    return grad_sites, grad_weight, grad_bias


@site_depthwise_backward.register_fake
def _(grad, sites, taps, needs_sites, needs_parameters, dtype, height, width, patch, cells, slots, lists=None):
    return empty_gradients(sites, taps, needs_sites, needs_parameters, dtype, 1)


@custom_op('mmconvnextv2::site_depthwise_norm_backward', mutates_args=())
def site_depthwise_norm_backward(
    grad: Tensor,
    sites: Tensor,
    taps: Tensor,
    needs_sites: bool,
    needs_parameters: bool,
    dtype: torch.dtype,
    convolved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what ``site_depthwise_backward`` does, and the gradients of the norm's weight and bias, (C, )."""
    from .kernels import depthwise, layer_norm

    geometry = height, width, patch, cells, slots, lists
    grad_sites, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias = empty_gradients(
        sites, taps, needs_sites, needs_parameters, dtype, 3
    )
    grad, norm_partial = layer_norm.gradients(grad, convolved, mean, rstd, norm_weight)
    if needs_sites:
        depthwise.convolve(grad, taps, None, grad_sites, geometry, mirrored=True)
    if needs_parameters:
        partial = depthwise.weight_gradient(sites, grad, grad_weight.shape[-1], geometry)
        depthwise.finish(partial, grad_weight, norm_partial, (grad_norm_weight, grad_norm_bias, grad_bias))
    return grad_sites, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias


@site_depthwise_norm_backward.register_fake
def _(grad, sites, taps, needs_sites, needs_parameters, dtype, convolved, mean, rstd, norm_weight, height, width, patch,
      cells, slots, lists=None):  # fmt: skip
    return empty_gradients(sites, taps, needs_sites, needs_parameters, dtype, 3)


@custom_op('mmconvnextv2::list_neighbours', mutates_args=())
def list_of_neighbours(cells: Tensor, slots: Tensor) -> Tensor:
    """Return a list of the visible neighbours of each visible cell, int32, as the convolution's kernel reads it."""
    from .kernels import depthwise

    return depthwise.list_neighbours(cells, slots)


@list_of_neighbours.register_fake
def _(cells, slots):
    return cells.new_empty(cells.numel(), LIST_LENGTH)


def with_neighbours(grid: Grid) -> Grid:
    """Return a grid with lists of neighbours, if kernels read them: where a cell is one site, and most are masked.

    Triton kernels serve a grid that has ``cell_slots``. An entry of a list takes more instructions than a tap of a row,
    so lists gain where fewer than half of the neighbours are visible. Indices in lists have 25 bits.
    """
    batch, visible = grid.cells.shape
    if grid.patch != 1 or grid.cell_slots is None or 2 * visible > grid.height * grid.width or batch * visible >= 2**25:
        return grid
    return replace(grid, neighbours=call(list_of_neighbours, *grid.cell_slots))


def _convolve(
    sites: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, geometry: tuple
) -> tuple[Tensor, Tensor]:
    from .kernels import depthwise

    taps, output = depthwise.transpose_taps(weight), torch.empty_like(sites, dtype=dtype)
    depthwise.convolve(sites, taps, bias, output, geometry)
    return output, taps


def _empty_taps(weight: Tensor) -> Tensor:
    return weight.new_empty(weight[0].numel(), len(weight), dtype=statistics_dtype(weight.dtype))


def empty_gradients(
    sites: Tensor, taps: Tensor, needs_sites: bool, needs_parameters: bool, dtype: torch.dtype, vectors: int
) -> tuple[Tensor, ...]:
    """Return tensors for the gradients of sites, weight (C, 1, k, k) and ``vectors`` vectors (C, )."""
    side, channels = math.isqrt(taps.shape[0]), taps.shape[1] if needs_parameters else 0
    grad_sites = torch.empty_like(sites) if needs_sites else sites.new_empty(0)
    grad_weight = taps.new_empty(channels, 1, side, side, dtype=dtype)
    return grad_sites, grad_weight, *(taps.new_empty(channels, dtype=dtype) for _ in range(vectors))
