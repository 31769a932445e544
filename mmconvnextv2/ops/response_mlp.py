"""Response MLP of a ConvNeXt V2 block, linear -> GELU -> GRN -> linear, as one differentiable operation.

Eager layers keep four tensors of 4C channels for the backward pass. This operation keeps only the first linear's output
and recomputes the activation. If an image has many sites, GRN's scale is folded into the second linear's weight
(``dispatch.fold_scale``), which avoids a scaled copy of the activation. On the CPU, hidden features are
processed chunk by chunk (``chunks``).

Letters: x (B, N, C) input, h and a (B, N, D) features before and after GELU, D = 4C, G (B, 1, D) the norm of a over
sites, n = G / (mean_D G + eps) GRN's response, s = 1 + gamma * n its scale, y (B, N, C) output, ' a transpose.

    forward     h = x W1' + b1        a = gelu(h)        y = (a s + beta) W2' + b2 = a (W2 s)' + (b2 + W2 beta)
    backward, given dy; sums run over sites and images unless a shape is given
        z     = dy W2                                    gradient of a s + beta, (B, N, D)
        dW2   = sum dy' (a s) + (sum dy)' beta           db2 = sum dy         dbeta = W2' db2
        ds    = sum_N z a  (B, 1, D)                     dgamma = sum_B ds n
        dn    = gamma ds
        dG    = (dn - mean_D(dn n)) / (mean_D G + eps)   since n = G / (mean_D G + eps)
        da    = z s + a dG / G                           since dG/da = a / G; the factor f = dG / G is 0 where G is 0
        dh    = gelu'(h) da
        dx    = dh W1        dW1 = sum dh' x             db1 = sum dh
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .autocast import autocast_dtype, cast_for_autocast, excluding_autocast
from .dispatch import fold_scale, fuse_mlp, in_blocks, times_kernels, use_triton
from .grid import Grid
from .grn import response_of, response_scale, scale_backward
from .matmul import multiply
from .mlp_passes import Hidden, join_norms
from .reductions import statistics_dtype
from .response_mlp_triton import KernelResponseMLP
from .tuning import faster

PIECE = 2**22  # largest number of hidden values in a chunk, 16 MiB in float32
ROWS = 4096  # largest number of sites in a chunk: with few channels, products of more rows are slower


def response_mlp(
    sites: Tensor,
    grid: Grid,
    expand: nn.Module,
    norm: nn.Module | None,
    project: nn.Module,
    depthwise: Callable[[Tensor, nn.Conv2d], Tensor] | None = None,
) -> Tensor:
    """Apply a block's MLP to sites: linear, GELU, response norm, linear. ``dispatch.fuse_mlp`` chooses how.

    Args:
        sites (Tensor): Sites of shape (B, N, C).
        grid (Grid): Geometry of the sites; its ``site_mask`` selects those that take part in the norm's sums.
        expand (nn.Module): First linear, (..., C) to (..., D), with D = 4C in a ConvNeXt V2 block.
        norm (nn.Module, optional): Response norm, called as ``norm(sites, site_mask, depthwise)``. None skips it.
        project (nn.Module): Second linear, (..., D) to (..., C).
        depthwise (Callable, optional): Function ``depthwise(sites, conv)`` for norms that read neighbours. Defaults to
            None.

    Returns:
        Tensor: Sites of shape (B, N, C).
    """
    if fuse_mlp(grid, expand, norm, project):
        assert isinstance(expand, nn.Linear) and isinstance(project, nn.Linear)
        grn = cast(Any, norm)  # a models.response_norms.GRN; ops must not import models
        parameters = expand.weight, expand.bias, grn.gamma, grn.beta, project.weight, project.bias

        def run(sites: Tensor, triton: bool) -> Tensor:
            return fused_response_mlp(sites, *parameters, grid.site_mask, grn.eps, triton)

        triton = use_triton(sites, grid)
        if triton and times_kernels(grid):
            runs = dict(triton=partial(run, triton=True), torch=partial(run, triton=False))
            triton = faster('response MLP', sites, parameters, runs) == 'triton'
        return run(sites, triton)
    hidden = F.gelu(expand(sites))  # (B, N, D)
    if norm is not None:
        hidden = norm(hidden, grid.site_mask, depthwise)
    return project(hidden)


def fused_response_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    site_mask: Tensor | None = None,
    eps: float = 1e-6,
    triton: bool | None = None,
) -> Tensor:
    """Apply linear, GELU, GRN and linear to sites; equal to :func:`response_mlp_reference`.

    Under autocast all matrix products run in the autocast dtype, and GRN's sums in float32.

    Args:
        x (Tensor): Sites of shape (B, N, C).
        weight1 (Tensor): First linear's weight (D, C), with D = 4C in a ConvNeXt V2 block.
        bias1 (Tensor): First linear's bias (D, ).
        gamma (Tensor): GRN's weight (D, ).
        beta (Tensor): GRN's bias (D, ).
        weight2 (Tensor): Second linear's weight (C, D).
        bias2 (Tensor): Second linear's bias (C, ).
        site_mask (Tensor, optional): Mask that is True where a site takes part in GRN's norm; bool, (B, N, 1). Defaults
            to None, all sites.
        eps (float): Constant added to the mean of GRN's norms. Defaults to 1e-6.
        triton (bool, optional): Whether passes over hidden features run as Triton kernels. Defaults to None, which
            means ``use_triton(x)``.

    Returns:
        Tensor: Sites of shape (B, N, C).

    Raises:
        RuntimeError: By torch, if a second derivative is requested; :func:`response_mlp_reference` supports it.
    """
    site_mask = None if site_mask is None else site_mask.expand(*x.shape[:2], 1)
    if use_triton(x) if triton is None else triton:
        dtype, parameters = autocast_dtype(x), (weight1, bias1, gamma, beta, weight2, bias2)
        site_mask = None if site_mask is None else site_mask.contiguous()  # kernels compute offsets in it
        with excluding_autocast(x):
            return KernelResponseMLP.apply(x.to(dtype), *parameters, site_mask, eps, dtype, fold_scale(x))
    tensors = cast_for_autocast(x, weight1, bias1, gamma, beta, weight2, bias2)
    with excluding_autocast(x):
        return _ResponseMLP.apply(*tensors, site_mask, eps)


def response_mlp_reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    site_mask: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Compute :func:`fused_response_mlp` operation by operation.

    It supports derivatives of any order, and keeps four tensors of D channels for the backward pass.
    """
    activation = F.gelu(F.linear(x, weight1, bias1))
    scale = 1 + gamma * response_scale(activation, site_mask, eps)
    return F.linear(torch.addcmul(beta, activation, scale.to(activation.dtype)), weight2, bias2)


def chunks(x: Tensor, channels: int) -> list[tuple[slice, list[slice]]]:
    """Split the hidden features (B, N, channels) of x (B, N, C) into chunks.

    On the CPU a chunk is several images or part of one, at most ``PIECE`` values and ``ROWS`` sites. Temporary tensors
    of that size stay in the caches, and below malloc's mmap threshold, so pages are not zeroed again. On other devices,
    and under torch.compile, which fuses passes, there is one chunk.

    Returns:
        list[tuple[slice, list[slice]]]: Slices of images, each with the slices of their sites.
    """
    batch, num_sites = x.shape[:2]
    if not in_blocks(x):
        return [(slice(None), [slice(None)])]
    rows = max(min(PIECE // max(channels, 1), ROWS), 1)
    groups = -(-batch // max(rows // max(num_sites, 1), 1))
    return [(images, _cut(num_sites, -(-num_sites // rows))) for images in _cut(batch, groups)]


def _cut(length: int, count: int) -> list[slice]:
    """Split a length into at most ``count`` slices, at least one, equal except for the last."""
    step = max(-(-length // max(count, 1)), 1)
    return [slice(start, min(start + step, length)) for start in range(0, max(length, 1), step)]


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    """Add a term to a sum over chunks, where None is the empty sum.

    From the second term on, the sum is kept in at least float32; a single chunk needs no copy.
    """
    return term if total is None else total.to(statistics_dtype(term.dtype)).add_(term)


class _Folded:
    """Second linear on scaled features, as ``a @ (weight2 * s).T`` per image.

    If an image has many sites, the scaled weight is smaller than the scaled features.

    Args:
        weight2 (Tensor): Weight (C, D).
        scale (Tensor): GRN's scale s, (B, 1, D).
    """

    def __init__(self, weight2: Tensor, scale: Tensor) -> None:
        self.weight2, self.scale = weight2, scale
        self.scaled_weight = weight2 * scale  # (B, C, D)

    def apply(self, hidden: Hidden, offset: Tensor) -> Tensor:
        """Return the output (B, N, C), with ``offset`` (C, ) added."""
        return multiply(hidden.activation(), self.scaled_weight.transpose(1, 2), offset)

    def sums(self, hidden: Hidden, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of ``weight2`` (C, D) and of s (B, 1, D, in the statistics dtype), given the gradient of
        the output (B, N, C), and a tensor that :meth:`gradient` reuses."""
        # One product per image serves both: dW2 = sum_B product * s, ds = sum_C product * W2
        product = multiply(grad.transpose(1, 2), hidden.activation())  # (B, C, D)
        grad_scale = (product.to(statistics_dtype(grad.dtype)) * self.weight2).sum(1, keepdim=True)
        return (product * self.scale).sum(0), grad_scale, None

    def gradient(self, hidden: Hidden, grad: Tensor, kept: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of h (B, N, D), including its part through the norms (``factor``), and its sum (D, )."""
        return hidden.gradient(multiply(grad, self.scaled_weight), None, factor)


class _Unfolded(_Folded):
    """Second linear on scaled features, as ``(a * s) @ weight2.T``."""

    def __init__(self, weight2: Tensor, scale: Tensor) -> None:
        self.weight2, self.scale = weight2, scale

    def apply(self, hidden: Hidden, offset: Tensor) -> Tensor:
        return multiply(hidden.scaled(self.scale), self.weight2.t(), offset)

    def sums(self, hidden: Hidden, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        grad_scaled = multiply(grad, self.weight2)  # (B, N, D)
        scaled, grad_scale = hidden.scaled_with_gradient(grad_scaled, self.scale)
        return multiply(grad.flatten(0, 1).t(), scaled.flatten(0, 1)), grad_scale, grad_scaled

    def gradient(self, hidden: Hidden, grad: Tensor, kept: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        assert kept is not None  # the third result of sums
        return hidden.gradient(kept, self.scale, factor)


def _second_linear(x: Tensor, weight2: Tensor, gamma: Tensor, norm: Tensor, eps: float) -> _Folded:
    """Return the second linear for the images x (B, N, C) of a chunk, given their norms (B, 1, D)."""
    scale = (1 + gamma * response_of(norm, eps)).to(x.dtype)
    return (_Folded if fold_scale(x) else _Unfolded)(weight2, scale)


def _hidden_of(hs: Iterable[Tensor], site_mask: Tensor | None, images: slice, sites: list[slice]) -> list[Hidden]:
    """Wrap the hidden features of each part of some images, taking the next ones from ``hs``."""
    return [Hidden(h, None if site_mask is None else site_mask[images, part]) for part, h in zip(sites, hs)]


class _ResponseMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        site_mask: Tensor | None,
        eps: float,
    ) -> Tensor:
        y, hs, norms = x.new_empty(x.shape), [], []
        offset = torch.addmv(bias2, weight2, beta)  # (C, ), GRN's beta through the second linear
        for images, sites in chunks(x, len(weight1)):
            h = [multiply(x[images, part], weight1.t(), bias1) for part in sites]  # (images, part, D) each
            parts = _hidden_of(h, site_mask, images, sites)
            # GRN's scale needs the norm over all sites of an image, so all of its parts come before the second linear
            norm = join_norms([hidden.norm(keep=fold_scale(x[images])) for hidden in parts])  # (images, 1, D)
            second = _second_linear(x[images], weight2, gamma, norm, eps)
            for part, hidden in zip(sites, parts):
                y[images, part] = second.apply(hidden, offset)
            hs += h
            norms.append(norm)
        ctx.save_for_backward(x, torch.cat(norms), weight1, gamma, beta, weight2, site_mask, *hs)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norms, weight1, gamma, beta, weight2, site_mask, *hs = ctx.saved_tensors
        grad, grad_x, hs = grad.contiguous(), x.new_empty(x.shape), iter(hs)
        grad_weight1 = grad_bias1 = grad_gamma = grad_weight2 = None
        for images, sites in chunks(x, len(weight1)):
            parts = _hidden_of(hs, site_mask, images, sites)
            kept, grad_scale = [], None
            second = _second_linear(x[images], weight2, gamma, norms[images], ctx.eps)
            # Two passes: ds sums over all sites of an image, and dG, which the gradient of each h needs, depends on it
            for part, hidden in zip(sites, parts):
                of_weight2, of_scale, again = second.sums(hidden, grad[images, part])
                grad_weight2, grad_scale = _add(grad_weight2, of_weight2), _add(grad_scale, of_scale)
                kept.append(again)
            assert grad_scale is not None  # there is at least one part
            of_gamma, factor = scale_backward(grad_scale, norms[images], gamma, ctx.eps)
            grad_gamma = _add(grad_gamma, of_gamma)
            for part, hidden, again in zip(sites, parts, kept):
                grad_h, of_bias1 = second.gradient(hidden, grad[images, part], again, factor)  # (images, part, D)
                grad_x[images, part] = multiply(grad_h, weight1)
                grad_bias1 = _add(grad_bias1, of_bias1)
                grad_weight1 = _add(grad_weight1, grad_h.flatten(0, 1).t() @ x[images, part].flatten(0, 1))
        assert grad_weight1 is not None and grad_bias1 is not None  # there is at least one chunk
        assert grad_gamma is not None and grad_weight2 is not None
        # beta enters through the offset b2 + W2 beta: its gradient and its share of dW2 come from db2, without z
        grad_bias2 = grad.sum((0, 1))
        grad_weight2 = grad_weight2.to(x.dtype).addr_(grad_bias2, beta)
        gradients = grad_weight1, grad_bias1, grad_gamma, weight2.t().mv(grad_bias2), grad_weight2, grad_bias2
        return grad_x, *(one.to(x.dtype) for one in gradients), None, None
