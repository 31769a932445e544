"""A whole block, depthwise convolution to residual sum, as one differentiable operation by Triton kernels.

It computes what ``depthwise``, ``response_mlp`` and ``add_branch`` compute one after the other. One operation asks the
host for less: one node of autograd instead of three, one kernel that lays out all parameters, one that adds up the
gradients of all vectors (C, ), and the gradient of the residual is added where the convolution's is stored.
``torch.compile`` sees the three operations, which it can fuse with others.

    forward     b = LN(conv(x))     y = MLP(b)     out = x + y * kept
    backward    dy = d * kept       db by the MLP       dx = d + conv'(LN'(db))
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from .autocast import autocast_dtype, excluding_autocast
from .depthwise_triton import empty_gradients
from .dispatch import call, fold_scale
from .grid import Grid
from .reductions import statistics_dtype
from .response_mlp_triton import run_backward, run_forward


def whole_block(
    sites: Tensor,
    grid: Grid,
    conv: nn.Conv2d,
    norm: nn.LayerNorm,
    expand: nn.Linear,
    response_norm: nn.Module | None,
    project: nn.Linear,
    kept: Tensor | None,
) -> Tensor:
    """Return the sites of a block whose layers :func:`.dispatch.fuse_block` accepts.

    Args:
        sites (Tensor): Sites of shape (B, N, C).
        grid (Grid): Geometry of the sites.
        conv (nn.Conv2d): Depthwise layer of stride 1 that keeps the size.
        norm (nn.LayerNorm): Norm over channels.
        expand (nn.Linear): First linear, C to D channels.
        response_norm (nn.Module, optional): GRN, over D channels.
        project (nn.Linear): Second linear, D to C channels.
        kept (Tensor, optional): Factor of each image's branch, (B, 1, 1), without a gradient. None means 1.

    Returns:
        Tensor: Sites of shape (B, N, C), in the wider dtype of ``sites`` and autocast.

    Raises:
        RuntimeError: By torch, if a second derivative is requested; ``kernels='layers'`` supports it.
    """
    grn = cast(Any, response_norm)  # a models.response_norms.GRN; ops must not import models
    settings = norm.eps, grn.eps, autocast_dtype(sites), fold_scale(sites), torch.is_grad_enabled()
    with excluding_autocast(sites):
        return _Block.apply(
            sites.contiguous(), kept, conv.weight, conv.bias, norm.weight, norm.bias, expand.weight, expand.bias,
            grn.gamma, grn.beta, project.weight, project.bias, (*settings, *grid.kernel_arguments()),
        )  # fmt: skip


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sites: Tensor, *arguments: Any) -> Tensor:
        kept, weight, _, norm_weight, _, weight1, _, gamma, beta, weight2, _, settings = arguments
        output, *saved = call(block_forward, sites, *arguments[:-1], *settings)
        ctx.save_for_backward(sites, kept, *saved, norm_weight, weight1, gamma, beta, weight2)
        ctx.settings, ctx.dtype = settings, weight.dtype
        return output

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (_raise_for_twice if torch.is_grad_enabled() else _gradients)(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs, (_, eps, dtype, fold, _, *where) = ctx.needs_input_grad, ctx.settings
    gradients = call(
        block_backward, grad.contiguous(), *ctx.saved_tensors, needs[0], ctx.dtype, eps, dtype, fold, *where
    )
    return gradients[0] if needs[0] else None, None, *gradients[1:], None


_raise_for_twice = once_differentiable(_gradients)


@custom_op('mmconvnextv2::block_forward', mutates_args=())
def block_forward(
    sites: Tensor,
    kept: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_eps: float,
    eps: float,
    dtype: torch.dtype,
    fold: bool,
    keep: bool,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> list[Tensor]:
    """Return the output, and what backward reads: taps, convolved sites, mean, rstd, normalised sites, h, G, s, and the
    weights of both linears cast to ``dtype``, empty if they were not."""
    from .kernels import depthwise, layer_norm, parameters, residual

    taps, *casts = parameters.lay_out(weight, weight1, bias1, weight2, bias2, dtype, not fold)
    convolved = torch.empty_like(sites, dtype=dtype)
    depthwise.convolve(sites, taps, bias, convolved, (height, width, patch, cells, slots, lists))
    normed, mean, rstd = layer_norm.forward(convolved, norm_weight, norm_bias, norm_eps, keep)
    branch, h, norms, scale = run_forward(normed, casts, gamma, beta, weight2, bias2, None, eps, fold)
    # An operator must not return its inputs
    cast1, cast2 = (sites.new_empty(0) if one is given else one for one, given in zip(casts[::2], (weight1, weight2)))
    return [residual.add(sites, branch, kept), taps, convolved, mean, rstd, normed, h, norms, scale, cast1, cast2]


@block_forward.register_fake
def _(sites, kept, weight, bias, norm_weight, norm_bias, weight1, bias1, gamma, beta, weight2, bias2, norm_eps, eps,
      dtype, fold, keep, height, width, patch, cells, slots, lists=None):  # fmt: skip
    batch, num_sites, channels = sites.shape
    kind, kept_sites = statistics_dtype(dtype), (batch, num_sites) if keep else (0, 0)
    taps = weight.new_empty(weight[0].numel(), channels, dtype=statistics_dtype(weight.dtype))
    convolved = torch.empty_like(sites, dtype=dtype)
    mean, rstd = (sites.new_empty(kept_sites, dtype=kind) for _ in range(2))
    h = convolved.new_empty(batch, num_sites, len(weight1))
    norms, scale = (sites.new_empty(batch, 1, len(weight1), dtype=kind) for _ in range(2))
    cast1 = sites.new_empty(0) if weight1.dtype == dtype else torch.empty_like(weight1, dtype=dtype)
    cast2 = sites.new_empty(0) if fold or weight1.dtype == dtype else torch.empty_like(weight2, dtype=dtype)
    output = torch.empty_like(sites, dtype=torch.promote_types(sites.dtype, dtype))
    return [output, taps, convolved, mean, rstd, torch.empty_like(convolved), h, norms, scale, cast1, cast2]


@custom_op('mmconvnextv2::block_backward', mutates_args=())
def block_backward(
    grad: Tensor,
    sites: Tensor,
    kept: Tensor | None,
    taps: Tensor,
    convolved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    normed: Tensor,
    h: Tensor,
    norms: Tensor,
    scale: Tensor,
    cast1: Tensor,
    cast2: Tensor,
    norm_weight: Tensor,
    weight1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    needs_sites: bool,
    parameter_dtype: torch.dtype,
    eps: float,
    dtype: torch.dtype,
    fold: bool,
    height: int,
    width: int,
    patch: int,
    cells: Tensor | None,
    slots: Tensor | None,
    lists: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradients of the sites, empty unless needed, and of the ten parameters in the order of
    ``block_forward``."""
    from .kernels import depthwise, layer_norm, residual

    geometry = height, width, patch, cells, slots, lists
    grad_sites, grad_weight, *vectors = empty_gradients(sites, taps, needs_sites, True, parameter_dtype, 4)
    of_branch, branch_partial = residual.branch_gradient(grad, kept, dtype)
    grad_bias2 = branch_partial.sum((0, 1), dtype=weight2.dtype) if fold else None
    weights = (cast1 if cast1.numel() else weight1), (cast2 if cast2.numel() else weight2)
    of_normed, *of_linears = run_backward(
        of_branch, grad_bias2, normed, h, norms, scale, *weights, gamma, beta, weight2, None, eps, fold
    )
    of_convolved, norm_partial = layer_norm.gradients(of_normed, convolved, mean, rstd, norm_weight)
    if needs_sites:
        depthwise.convolve(of_convolved, taps, None, grad_sites, geometry, mirrored=True, residual=grad)
    partial = depthwise.weight_gradient(sites, of_convolved, grad_weight.shape[-1], geometry)
    depthwise.finish(partial, grad_weight, norm_partial, tuple(vectors), branch_partial)
    of_norm_weight, of_norm_bias, of_bias, of_bias2 = vectors
    return [grad_sites, grad_weight, of_bias, of_norm_weight, of_norm_bias, *of_linears, of_bias2]


@block_backward.register_fake
def _(grad, sites, kept, taps, convolved, mean, rstd, normed, h, norms, scale, cast1, cast2, norm_weight, weight1,
      gamma, beta, weight2, needs_sites, parameter_dtype, eps, dtype, fold, height, width, patch, cells, slots,
      lists=None):  # fmt: skip
    grad_sites, grad_weight, *vectors = empty_gradients(sites, taps, needs_sites, True, parameter_dtype, 4)
    linears = [torch.empty_like(one) for one in (weight1, gamma, gamma, beta, weight2)]
    return [grad_sites, grad_weight, *vectors[:3], *linears, vectors[3]]


@register_flop_formula(torch.ops.mmconvnextv2.block_forward)
def _count(sites_shape, kept_shape, weight_shape, *args, **kwargs) -> int:
    """Count a multiply-add as two operations, as torch does for convolutions and products."""
    return 2 * sites_shape.numel() * (weight_shape[-1] ** 2 + 8 * sites_shape[-1])


@register_flop_formula(torch.ops.mmconvnextv2.block_backward)
def _count_gradients(grad_shape, sites_shape, kept_shape, taps_shape, *args, **kwargs) -> int:
    return 4 * sites_shape.numel() * (taps_shape[0] + 8 * sites_shape[-1])
