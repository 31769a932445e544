"""The response MLP of a ConvNeXt V2 block, linear -> GELU -> GRN -> linear, as one differentiable operation.

Eager code keeps four tensors of 4C channels for the backward pass; this keeps one, the first linear's output, and
computes the activation again. GRN's scale of an image is folded into the second linear's weight where an image has more
sites than channels, so that no scaled copy of the activation is made. Letters: x (B, N, C) input, h and a (B, N, 4C)
before and after GELU, n GRN's normalised response and s = 1 + gamma * n the scale (B, 1, 4C).
"""
from typing import Optional, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layers import statistics_dtype
from ..response_norms import response_scale
from .autocast import cast_for_autocast, without_autocast
from .dispatch import uses_kernels
from .grn import response_of, scale_backward
from .hidden import Hidden, KernelHidden

SecondLinearGradients = Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]


def response_mlp(x: Tensor,
                 weight1: Tensor,
                 bias1: Tensor,
                 gamma: Tensor,
                 beta: Tensor,
                 weight2: Tensor,
                 bias2: Tensor,
                 counted: Optional[Tensor] = None,
                 eps: float = 1e-6) -> Tensor:
    """Apply linear, GELU, GRN and linear to sites; equal to :func:`response_mlp_reference`.

    Under autocast all matrix products run in the autocast dtype, and GRN's sums in float32.

    Args:
        x (Tensor): Sites, (B, N, C).
        weight1 (Tensor): (D, C), with D = 4C in a ConvNeXt V2 block.
        bias1 (Tensor): (D, ).
        gamma (Tensor): (D, ).
        beta (Tensor): (D, ).
        weight2 (Tensor): (C, D).
        bias2 (Tensor): (C, ).
        counted (Tensor, optional): Bool, (B, N, 1), True where a site takes part in GRN's norm. Defaults to None.
        eps (float): GRN's. Defaults to 1e-6.

    Returns:
        Tensor: (B, N, C).

    Raises:
        RuntimeError: By torch, when a second derivative is asked for; use :func:`response_mlp_reference` for it.
    """
    tensors = cast_for_autocast(x, weight1, bias1, gamma, beta, weight2, bias2)
    with without_autocast(x.device):
        return _ResponseMLP.apply(*tensors, counted, eps, KernelHidden if uses_kernels(x) else Hidden)


def response_mlp_reference(x: Tensor,
                           weight1: Tensor,
                           bias1: Tensor,
                           gamma: Tensor,
                           beta: Tensor,
                           weight2: Tensor,
                           bias2: Tensor,
                           counted: Optional[Tensor] = None,
                           eps: float = 1e-6) -> Tensor:
    """Compute :func:`response_mlp` operation by operation; any derivative, keeps four tensors of D channels."""
    activation = F.gelu(F.linear(x, weight1, bias1))
    scale = 1 + gamma * response_scale(activation, counted, eps)
    return F.linear(torch.addcmul(beta, activation, scale.to(activation.dtype)), weight2, bias2)


def _folds(x: Tensor) -> bool:
    """Whether an image has more sites than channels, so that a scaled weight is smaller than a scaled activation."""
    return x.shape[1] > x.shape[2]


class _ResponseMLP(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, weight1: Tensor, bias1: Tensor, gamma: Tensor, beta: Tensor, weight2: Tensor,
                bias2: Tensor, counted: Optional[Tensor], eps: float, passes: Type[Hidden]) -> Tensor:
        hidden = passes(F.linear(x, weight1, bias1), counted)  # (B, N, D)
        norm = hidden.norm(keep=_folds(x))  # (B, 1, D)
        scale = (1 + gamma * response_of(norm, eps)).to(x.dtype)
        ctx.save_for_backward(x, hidden.h, norm, weight1, gamma, beta, weight2, counted)
        ctx.eps, ctx.passes = eps, passes
        offset = torch.addmv(bias2, weight2, beta)  # (C, ), GRN's beta through the second linear
        if _folds(x):
            return torch.baddbmm(offset, hidden.activation(), (weight2 * scale).transpose(1, 2))  # (B, N, C)
        return F.linear(hidden.scaled(scale), weight2, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, h, norm, weight1, gamma, beta, weight2, counted = ctx.saved_tensors
        hidden = ctx.passes(h, counted)
        scale = (1 + gamma * response_of(norm, ctx.eps)).to(x.dtype)  # (B, 1, D)
        grad = grad.contiguous()
        second_linear = _folded_backward if _folds(x) else _unfolded_backward
        grad_hidden, grad_weight2, grad_scale, scale = second_linear(grad, hidden, scale, weight2)
        grad_bias2 = grad.sum((0, 1))
        grad_weight2 = torch.addr(grad_weight2, grad_bias2, beta)
        grad_beta = weight2.t().mv(grad_bias2)

        grad_gamma, factor = scale_backward(grad_scale, norm, gamma, ctx.eps)
        grad_h, grad_bias1 = hidden.gradient(grad_hidden, scale, factor)  # (B, N, D), (D, )

        flat = grad_h.flatten(0, 1)
        grad_x = (flat @ weight1).view_as(x)
        grad_weight1 = flat.t() @ x.flatten(0, 1)
        return grad_x, grad_weight1, grad_bias1, grad_gamma, grad_beta, grad_weight2, grad_bias2, None, None, None


def _folded_backward(grad: Tensor, hidden: Hidden, scale: Tensor, weight2: Tensor) -> SecondLinearGradients:
    """Differentiate ``a @ (weight2 * s).T`` of each image.

    Returns:
        tuple[Tensor]: Gradients of a (B, N, D), of ``weight2`` (C, D) and of s (B, 1, D) in the dtype of statistics,
        and what the first is yet to be multiplied by, here None.
    """
    grad_activation = grad @ (weight2 * scale)
    product = grad.transpose(1, 2) @ hidden.activation()  # (B, C, D)
    grad_scale = (product.to(statistics_dtype(grad.dtype)) * weight2).sum(1, keepdim=True)
    return grad_activation, (product * scale).sum(0), grad_scale, None


def _unfolded_backward(grad: Tensor, hidden: Hidden, scale: Tensor, weight2: Tensor) -> SecondLinearGradients:
    """Differentiate ``(a * s) @ weight2.T``; returns what :func:`_folded_backward` does, with s for None."""
    grad_scaled = grad @ weight2  # (B, N, D)
    scaled, grad_scale = hidden.scaled_with_gradient(grad_scaled, scale)
    grad_weight2 = grad.flatten(0, 1).t() @ scaled.flatten(0, 1)
    return grad_scaled, grad_weight2, grad_scale, scale
