"""The response MLP of a ConvNeXt V2 block, linear -> GELU -> GRN -> linear, as one differentiable operation.

Eager code keeps four tensors of 4C channels for the backward pass; this keeps the first linear's output alone, and
computes the activation again. GRN's scale of an image is folded into the second linear's weight where an image has more
sites than channels (``dispatch.fold_scale``), so that no scaled copy of the activation is made. On the CPU it goes over
hidden features chunk by chunk (``chunks``).

Letters: x (B, N, C) input, h and a (B, N, D), D = 4C, before and after GELU, G (B, 1, D) the norm of a over sites, n =
G / (mean_D G + eps) GRN's response, s = 1 + gamma * n its scale, y (B, N, C) the output.

    forward     h = x W1' + b1        a = gelu(h)        y = (a s + beta) W2' + b2 = a (W2 s)' + (b2 + W2 beta)
    backward, dy given; sums over sites and images unless a shape says otherwise
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
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .autocast import cast_for_autocast, without_autocast
from .dispatch import fold_scale, fuse_mlp, in_blocks, use_triton
from .grid import Grid
from .grn import response_of, response_scale, scale_backward
from .matmul import multiply
from .mlp_passes import Hidden, KernelHidden, join_norms
from .reductions import statistics_dtype

PIECE = 2**22  # hidden values of a piece at most, 16 MiB in float32
ROWS = 4096  # and sites: matrix products of more rows and few channels are slower


def response_mlp(
    sites: Tensor,
    grid: Grid,
    expand: nn.Module,
    norm: nn.Module | None,
    project: nn.Module,
    depthwise: Callable[[Tensor, nn.Conv2d], Tensor] | None = None,
) -> Tensor:
    """Apply a block's MLP to sites: linear, GELU, response norm and linear; ``dispatch.fuse_mlp`` says how.

    Args:
        sites (Tensor): (B, N, C).
        grid (Grid): Where they are; its ``site_mask`` says which take part in the norm's sums.
        expand (nn.Module): (..., C) to (..., D), with D = 4C in a ConvNeXt V2 block.
        norm (nn.Module, optional): A response norm, ``norm(sites, site_mask, depthwise)``. None: none.
        project (nn.Module): (..., D) to (..., C).
        depthwise (Callable, optional): ``depthwise(sites, conv)``, for norms that look at neighbours.

    Returns:
        Tensor: (B, N, C).
    """
    if fuse_mlp(grid, expand, norm, project):
        assert isinstance(expand, nn.Linear) and isinstance(project, nn.Linear)
        grn = cast(Any, norm)  # models.response_norms.GRN, which this shelf cannot import
        return fused_response_mlp(
            sites,
            expand.weight,
            expand.bias,
            grn.gamma,
            grn.beta,
            project.weight,
            project.bias,
            grid.site_mask,
            grn.eps,
            use_triton(sites, grid),
        )
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
        x (Tensor): Sites, (B, N, C).
        weight1 (Tensor): (D, C), with D = 4C in a ConvNeXt V2 block.
        bias1 (Tensor): (D, ).
        gamma (Tensor): (D, ).
        beta (Tensor): (D, ).
        weight2 (Tensor): (C, D).
        bias2 (Tensor): (C, ).
        site_mask (Tensor, optional): Bool, (B, N, 1), True where a site takes part in GRN's norm. Defaults to None.
        eps (float): GRN's. Defaults to 1e-6.
        triton (bool, optional): Whether Triton kernels pass over hidden features. Defaults to None, ``use_triton(x)``.

    Returns:
        Tensor: (B, N, C).

    Raises:
        RuntimeError: By torch, when a second derivative is asked for; use :func:`response_mlp_reference` for it.
    """
    tensors = cast_for_autocast(x, weight1, bias1, gamma, beta, weight2, bias2)
    site_mask = None if site_mask is None else site_mask.expand(*x.shape[:2], 1)
    triton = use_triton(x) if triton is None else triton
    with without_autocast(x.device):
        return _ResponseMLP.apply(*tensors, site_mask, eps, KernelHidden if triton else Hidden)


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
    """Compute :func:`fused_response_mlp` operation by operation; any derivative, keeps four tensors of D channels."""
    activation = F.gelu(F.linear(x, weight1, bias1))
    scale = 1 + gamma * response_scale(activation, site_mask, eps)
    return F.linear(torch.addcmul(beta, activation, scale.to(activation.dtype)), weight2, bias2)


def chunks(x: Tensor, channels: int) -> list[tuple[slice, list[slice]]]:
    """Cut the hidden features (B, N, channels) of x (B, N, C) into chunks: slices of images and, for each, slices of
    their sites.

    On the CPU a chunk holds at most ``PIECE`` values and ``ROWS`` sites, several images or a part of one: temporary
    tensors of that size stay in the caches, and below malloc's mmap threshold, so that pages are not zeroed again.
    Elsewhere, and where torch.compile fuses passes, there is one chunk.
    """
    batch, num_sites = x.shape[:2]
    if not in_blocks(x):
        return [(slice(None), [slice(None)])]
    rows = max(min(PIECE // max(channels, 1), ROWS), 1)
    groups = -(-batch // max(rows // max(num_sites, 1), 1))
    return [(images, _cut(num_sites, -(-num_sites // rows))) for images in _cut(batch, groups)]


def _cut(length: int, count: int) -> list[slice]:
    """Cut a length into as many slices, equal but for the last, or fewer, but one at least."""
    step = max(-(-length // max(count, 1)), 1)
    return [slice(start, min(start + step, length)) for start in range(0, max(length, 1), step)]


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    """Add a term to a sum over pieces, kept in float32 at least as soon as it has two; None is a sum of none."""
    return term if total is None else total.to(statistics_dtype(term.dtype)).add_(term)


class _Folded:
    """The second linear on scaled features, ``a @ (weight2 * s).T`` of each image: where an image has more sites than
    channels, a scaled weight is smaller than scaled features.

    Args:
        weight2 (Tensor): (C, D).
        scale (Tensor): s, (B, 1, D).
    """

    def __init__(self, weight2: Tensor, scale: Tensor) -> None:
        self.weight2, self.scale = weight2, scale
        self.scaled_weight = weight2 * scale  # (B, C, D)

    def apply(self, hidden: Hidden, offset: Tensor) -> Tensor:
        """Return the output, ``offset`` (C, ) added, (B, N, C)."""
        return multiply(hidden.activation(), self.scaled_weight.transpose(1, 2), offset)

    def sums(self, hidden: Hidden, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of ``weight2`` (C, D) and of s (B, 1, D) in the dtype of statistics, from that of the
        output (B, N, C), and what :meth:`gradient` needs again."""
        product = multiply(grad.transpose(1, 2), hidden.activation())  # (B, C, D)
        grad_scale = (product.to(statistics_dtype(grad.dtype)) * self.weight2).sum(1, keepdim=True)
        return (product * self.scale).sum(0), grad_scale, None

    def gradient(self, hidden: Hidden, grad: Tensor, kept: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of h (B, N, D), that through the norms (``factor``) included, and its sum (D, )."""
        return hidden.gradient(multiply(grad, self.scaled_weight), None, factor)


class _Unfolded(_Folded):
    """The same as ``(a * s) @ weight2.T``."""

    def __init__(self, weight2: Tensor, scale: Tensor) -> None:
        self.weight2, self.scale = weight2, scale

    def apply(self, hidden: Hidden, offset: Tensor) -> Tensor:
        return multiply(hidden.scaled(self.scale), self.weight2.t(), offset)

    def sums(self, hidden: Hidden, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        grad_scaled = multiply(grad, self.weight2)  # (B, N, D)
        scaled, grad_scale = hidden.scaled_with_gradient(grad_scaled, self.scale)
        return multiply(grad.flatten(0, 1).t(), scaled.flatten(0, 1)), grad_scale, grad_scaled

    def gradient(self, hidden: Hidden, grad: Tensor, kept: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        assert kept is not None  # sums returned it
        return hidden.gradient(kept, self.scale, factor)


def _second_linear(x: Tensor, weight2: Tensor, gamma: Tensor, norm: Tensor, eps: float) -> _Folded:
    """Return the second linear of the images of a piece, x (B, N, C), whose norms (B, 1, D) are known."""
    scale = (1 + gamma * response_of(norm, eps)).to(x.dtype)
    return (_Folded if fold_scale(x) else _Unfolded)(weight2, scale)


def _hidden_of(
    passes: type[Hidden], hs: Iterable[Tensor], site_mask: Tensor | None, images: slice, sites: list[slice]
) -> list[Hidden]:
    """Return the hidden features of each part of some images, of which ``hs`` has the next."""
    return [passes(h, None if site_mask is None else site_mask[images, part]) for part, h in zip(sites, hs)]


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
        passes: type[Hidden],
    ) -> Tensor:
        y, hs, norms = x.new_empty(x.shape), [], []
        offset = torch.addmv(bias2, weight2, beta)  # (C, ), GRN's beta through the second linear
        for images, sites in chunks(x, len(weight1)):
            h = [multiply(x[images, part], weight1.t(), bias1) for part in sites]  # (images, part, D) each
            parts = _hidden_of(passes, h, site_mask, images, sites)
            norm = join_norms([hidden.norm(keep=fold_scale(x[images])) for hidden in parts])  # (images, 1, D)
            second = _second_linear(x[images], weight2, gamma, norm, eps)
            for part, hidden in zip(sites, parts):
                y[images, part] = second.apply(hidden, offset)
            hs += h
            norms.append(norm)
        ctx.save_for_backward(x, torch.cat(norms), weight1, gamma, beta, weight2, site_mask, *hs)
        ctx.eps, ctx.passes = eps, passes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norms, weight1, gamma, beta, weight2, site_mask, *hs = ctx.saved_tensors
        grad, grad_x, hs = grad.contiguous(), x.new_empty(x.shape), iter(hs)
        grad_weight1 = grad_bias1 = grad_gamma = grad_weight2 = None
        for images, sites in chunks(x, len(weight1)):
            parts, kept, grad_scale = _hidden_of(ctx.passes, hs, site_mask, images, sites), [], None
            second = _second_linear(x[images], weight2, gamma, norms[images], ctx.eps)
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
        grad_bias2 = grad.sum((0, 1))
        grad_weight2 = grad_weight2.to(x.dtype).addr_(grad_bias2, beta)
        gradients = grad_weight1, grad_bias1, grad_gamma, weight2.t().mv(grad_bias2), grad_weight2, grad_bias2
        return grad_x, *(one.to(x.dtype) for one in gradients), None, None, None
