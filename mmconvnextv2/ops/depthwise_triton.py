"""Depthwise convolution, and LayerNorm of its result, over sites (B, N, C) as Triton kernels.

Sites are those of a whole map in raster order, or only those of visible cells. Neighbours of the latter are found
through an index of cells, so no map is built, nor kept for the backward pass. The references are the layers in the
executions. Kernels are wrapped as custom operators with fake implementations, so torch.compile does not trace into
them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.library import custom_op

from .autocast import cast_for_autocast, without_autocast
from .grid import Grid
from .reductions import statistics_dtype


def depthwise_sites(sites: Tensor, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """Convolve each channel of sites over its neighbours.

    Args:
        sites (Tensor): Sites of shape (B, N, C).
        conv (nn.Conv2d): Depthwise layer of stride 1 that keeps the size.
        grid (Grid): Geometry of the sites.

    Returns:
        Tensor: Sites of shape (B, N, C).

    Raises:
        RuntimeError: By torch, if a second derivative is requested; ``kernels='layers'`` supports it.
    """
    sites, weight, bias = cast_for_autocast(sites, conv.weight, conv.bias)
    with without_autocast(sites.device):
        return _Depthwise.apply(sites.contiguous(), weight, bias, *grid.kernel_arguments())


def depthwise_norm_sites(sites: Tensor, conv: nn.Conv2d, norm: nn.LayerNorm, grid: Grid) -> Tensor:
    """Apply LayerNorm to :func:`depthwise_sites`, in the same kernel.

    Under autocast the result is in the autocast dtype; LayerNorm computes in float32 for half precision.
    """
    sites, weight, bias = cast_for_autocast(sites, conv.weight, conv.bias)
    with without_autocast(sites.device):
        return _DepthwiseNorm.apply(
            sites.contiguous(),
            weight,
            bias,
            norm.weight,
            norm.bias,
            norm.eps,
            torch.is_grad_enabled(),  # without gradients the kernel need not store what backward reads
            *grid.kernel_arguments(),
        )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sites: Tensor, weight: Tensor, bias: Tensor | None, *where: Any) -> Tensor:
        ctx.save_for_backward(sites, weight)
        ctx.where = where
        return site_depthwise(sites, weight, bias, *where)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad.contiguous(), *ctx.saved_tensors), *[None] * len(ctx.where)


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
        *where: Any,
    ) -> Tensor:
        convolved, normed, mean, rstd = site_depthwise_norm(
            sites, weight, bias, norm_weight, norm_bias, eps, keep, *where
        )
        ctx.save_for_backward(sites, weight, norm_weight, convolved, mean, rstd)
        ctx.where = where
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        sites, weight, norm_weight, convolved, mean, rstd = ctx.saved_tensors
        # Normalised values are not kept: convolved sites, mean and rstd give them again
        grad, *grad_norm = layer_norm_gradients(grad.contiguous(), convolved, mean, rstd, norm_weight)
        return *_backward(ctx, grad, sites, weight), *grad_norm, None, None, *[None] * len(ctx.where)


def _backward(ctx, grad: Tensor, sites: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of sites (B, N, C), weight (C, 1, k, k) and bias (C, ) that are needed."""
    grad_sites = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:  # stride 1: the gradient is a convolution with the flipped kernel, over the same sites
        grad_sites = site_depthwise(grad, weight, None, *ctx.where, flipped=True)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:  # one kernel computes both
        grad_weight, grad_bias = site_depthwise_gradients(sites, grad, weight.shape[-1], *ctx.where)
    return grad_sites, grad_weight, grad_bias if ctx.needs_input_grad[2] else None


@custom_op('mmconvnextv2::site_depthwise', mutates_args=())
def site_depthwise(
    sites: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    flipped: bool = False,
) -> Tensor:
    """Convolve sites with the kernel, or with the flipped kernel for the gradient of the input."""
    from .kernels import depthwise

    return depthwise.convolve(sites, weight, bias, (height, width, patch, cells, slots), flipped)[0]


@site_depthwise.register_fake
def _(sites, weight, bias, height, width, patch, cells, slots, flipped=False):
    return torch.empty_like(sites)


@custom_op('mmconvnextv2::site_depthwise_norm', mutates_args=())
def site_depthwise_norm(
    sites: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep: bool,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the convolved sites, the normalised sites, and mean and rstd (B, N).

    All except the normalised sites are empty unless ``keep`` is set.
    """
    from .kernels import depthwise

    convolved, normed, mean, rstd = depthwise.convolve(
        sites, weight, bias, (height, width, patch, cells, slots), norm=(norm_weight, norm_bias, eps), keep=keep
    )
    return convolved, normed, mean, rstd


@site_depthwise_norm.register_fake
def _(sites, weight, bias, norm_weight, norm_bias, eps, keep, height, width, patch, cells, slots):
    batch, num_sites = sites.shape[:2]
    mean, rstd = (
        sites.new_empty(batch, num_sites if keep else 0, dtype=statistics_dtype(sites.dtype)) for _ in range(2)
    )
    return torch.empty_like(sites) if keep else sites.new_empty(0), torch.empty_like(sites), mean, rstd


@custom_op('mmconvnextv2::site_depthwise_gradients', mutates_args=())
def site_depthwise_gradients(
    sites: Tensor,
    grad: Tensor,
    side: int,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight, (C, 1, k, k), and of the bias, (C, )."""
    from .kernels import depthwise

    return depthwise.gradients(sites, grad, side, (height, width, patch, cells, slots))


@site_depthwise_gradients.register_fake
def _(sites, grad, side, height, width, patch, cells, slots):
    return sites.new_empty(sites.shape[-1], 1, side, side), sites.new_empty(sites.shape[-1])


@custom_op('mmconvnextv2::layer_norm_gradients', mutates_args=())
def layer_norm_gradients(
    grad: Tensor, values: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the values before LayerNorm, (B, N, C), of its weight and of its bias, (C, )."""
    from .kernels import layer_norm

    return layer_norm.gradients(grad, values, mean, rstd, weight)


@layer_norm_gradients.register_fake
def _(grad, values, mean, rstd, weight):
    return torch.empty_like(values), torch.empty_like(weight), torch.empty_like(weight)
