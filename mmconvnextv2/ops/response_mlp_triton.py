"""Response MLP with Triton kernels: one operator forward and one backward; formulas and letters as in ``response_mlp``.

Parameters stay in their dtype: matrices are cast for products, everything else is read in float32, and gradients are
returned in the parameters' dtype. For the backward pass x, h, the norms and cast weights are kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from .dispatch import call, count_parts
from .reductions import statistics_dtype

HAS_OUT_DTYPE = 'dtype' in torch.ops.aten.mm.overloads()  # torch 2.8 and later


class KernelResponseMLP(torch.autograd.Function):
    """Function of x, the parameters in the order of ``fused_response_mlp``, site mask, eps, dtype and ``fold``."""

    @staticmethod
    def forward(ctx, x: Tensor, *arguments: Any) -> Tensor:
        x = x.contiguous()
        y, *kept = call(response_mlp_forward, x, *arguments)
        weight1, _, gamma, beta, weight2, _, site_mask, *settings = arguments
        ctx.save_for_backward(x, *kept, weight1, gamma, beta, weight2, site_mask)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        eps, _, fold = ctx.settings
        gradients = call(response_mlp_backward, grad.contiguous(), *ctx.saved_tensors, eps, fold)
        return *gradients, None, None, None, None


@custom_op('mmconvnextv2::response_mlp_forward', mutates_args=())
def response_mlp_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    site_mask: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    fold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y (B, N, C) and h (B, N, D) in ``dtype``, norms G and scales s (B, 1, D) in the dtype of sums, and both
    weights cast to ``dtype``, empty if they were not.

    ``x`` has that dtype.
    """
    cast1, cast_bias1, cast2, cast_bias2 = weight1, bias1, weight2, bias2
    if weight1.dtype != dtype and fold:
        cast1, cast_bias1 = _cast([weight1, bias1], dtype)
    elif weight1.dtype != dtype:
        cast1, cast_bias1, cast2, cast_bias2 = _cast([weight1, bias1, weight2, bias2], dtype)
    casts = cast1, cast_bias1, cast2, cast_bias2
    y, h, norm, scale = run_forward(x, casts, gamma, beta, weight2, bias2, site_mask, eps, fold)
    # An operator must not return its inputs
    cast1, cast2 = (x.new_empty(0) if cast is given else cast for cast, given in ((cast1, weight1), (cast2, weight2)))
    return y, h, norm, scale, cast1, cast2


def run_forward(
    x: Tensor,
    casts: Sequence[Tensor],
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    site_mask: Tensor | None,
    eps: float,
    fold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, h, G and s; ``casts`` are both weights and biases in the dtype of ``x``, unless folded all four."""
    from .kernels import gelu, response

    cast1, cast_bias1, cast2, cast_bias2 = casts
    h = torch.addmm(cast_bias1, x.flatten(0, 1), cast1.t()).view(*x.shape[:2], -1)
    activation, partial = gelu.norm(h, site_mask, keep=fold)
    norm, scale = response.response(partial, gamma, eps)
    if fold:
        offset = torch.addmv(bias2, weight2, beta).to(x.dtype)  # beta through the second linear
        y = torch.baddbmm(offset, activation, _scaled_weight(weight2, scale, x.dtype).transpose(1, 2))
    else:
        y = torch.addmm(cast_bias2, gelu.scaled(h, scale, beta).flatten(0, 1), cast2.t()).view_as(x)
    return y, h, norm, scale


@response_mlp_forward.register_fake
def _(x, weight1, bias1, gamma, beta, weight2, bias2, site_mask, eps, dtype, fold):
    small = x.new_empty(x.shape[0], 1, len(weight1), dtype=statistics_dtype(dtype))
    cast1, cast2 = (x.new_empty(0 if weight.dtype == dtype else weight.shape) for weight in (weight1, weight2))
    h, cast2 = x.new_empty(*x.shape[:2], len(weight1)), x.new_empty(0) if fold else cast2
    return torch.empty_like(x), h, small, torch.empty_like(small), cast1, cast2


@custom_op('mmconvnextv2::response_mlp_backward', mutates_args=())
def response_mlp_backward(
    grad: Tensor,
    x: Tensor,
    h: Tensor,
    norm: Tensor,
    scale: Tensor,
    cast1: Tensor,
    cast2: Tensor,
    weight1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    site_mask: Tensor | None,
    eps: float,
    fold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x and of the parameters, in the order of ``fused_response_mlp``."""
    grad_bias2 = grad.sum((0, 1), dtype=weight1.dtype)
    weights = (cast1 if cast1.numel() else weight1), (cast2 if cast2.numel() else weight2)
    grad_x, of_weight1, of_bias1, of_gamma, of_beta, of_weight2 = run_backward(
        grad, grad_bias2, x, h, norm, scale, *weights, gamma, beta, weight2, site_mask, eps, fold
    )
    return grad_x, of_weight1, of_bias1, of_gamma, of_beta, of_weight2, grad_bias2


def run_backward(
    grad: Tensor,
    grad_bias2: Tensor | None,
    x: Tensor,
    h: Tensor,
    norm: Tensor,
    scale: Tensor,
    cast1: Tensor,
    cast2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    site_mask: Tensor | None,
    eps: float,
    fold: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of x and of all parameters but the last; ``grad_bias2`` is read only where folded."""
    from .kernels import gelu, response

    kind, dtype = weight2.dtype, x.dtype
    rows = grad.flatten(0, 1)
    if fold:
        # One product per image serves both: dW2 = sum_B product * s, ds = sum_C product * W2
        assert grad_bias2 is not None
        parts = count_parts(len(x), x.shape[1], x.shape[2], h.shape[2])
        left, right = (one.view(len(x) * parts, -1, one.shape[2]) for one in (grad, torch.nn.functional.gelu(h)))
        scales = scale if parts == 1 else scale.repeat_interleave(parts, 0)
        product = left.transpose(1, 2) @ right  # (B * parts, C, D)
        grad_weight2, partial = response.folded_gradients(product, weight2, scales, grad_bias2, beta)
        partial = partial.view(len(x), -1, partial.shape[2])
        through = grad @ _scaled_weight(weight2, scale, dtype)
    else:
        through = (rows @ cast2).view_as(h)
        scaled, partial, *partials = gelu.scaled_with_gradient(h, scale, beta, through)
        grad_weight2 = _product(rows.t(), scaled.flatten(0, 1), kind)
    factor, grad_gamma = response.response_backward(partial, norm, gamma, eps)
    # ``through`` becomes the gradient of h
    partial = gelu.gradient(h, site_mask, None if fold else scale, factor, through)
    if fold:
        assert grad_bias2 is not None
        grad_bias1, grad_gamma = response.sum_rows(kind, partial, grad_gamma)
        grad_beta = weight2.t().mv(grad_bias2)
    else:
        grad_bias1, grad_gamma, grad_beta = response.sum_rows(kind, partial, grad_gamma, *partials)
    through = through.flatten(0, 1)
    grad_weight1 = _product(through.t(), x.flatten(0, 1), kind)
    return (through @ cast1).view_as(x), grad_weight1, grad_bias1, grad_gamma, grad_beta, grad_weight2


@response_mlp_backward.register_fake
def _(grad, x, h, norm, scale, cast1, cast2, weight1, gamma, beta, weight2, site_mask, eps, fold):
    like = torch.empty_like
    bias2 = weight2.new_empty(len(weight2))
    return like(x), like(weight1), like(gamma), like(gamma), like(beta), like(weight2), bias2


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return contiguous copies of tensors in another dtype, by one launch."""
    casts = [torch.empty(tensor.shape, dtype=dtype, device=tensor.device) for tensor in tensors]
    torch._foreach_copy_(casts, tensors)
    return casts


def _scaled_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight (C, D) times scales (B, 1, D) in ``dtype``, (B, C, D), by one operation."""
    return torch.mul(weight, scale, out=weight.new_empty(len(scale), *weight.shape, dtype=dtype))


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix product in ``dtype``, on CUDA without rounding a half-precision product's sums before."""
    if HAS_OUT_DTYPE and left.is_cuda and left.dtype != dtype == torch.float32:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


@register_flop_formula(torch.ops.mmconvnextv2.response_mlp_forward)
def _count(x_shape, weight1_shape, *args, **kwargs) -> int:
    """Count a multiply-add as two operations, as torch does for its products: there are two."""
    return 4 * x_shape[:-1].numel() * weight1_shape.numel()


@register_flop_formula(torch.ops.mmconvnextv2.response_mlp_backward)
def _count_backward(grad_shape, x_shape, h_shape, *args, **kwargs) -> int:
    return 8 * x_shape.numel() * h_shape[-1]
