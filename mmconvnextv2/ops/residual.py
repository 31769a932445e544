"""Sum of a block's input and its branch, with drop path in the same pass."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autocast import excluding_autocast
from .dispatch import fuse_residual
from .grid import Grid


def add_branch(sites: Tensor, branch: Tensor, kept: Tensor | None, grid: Grid | None = None) -> Tensor:
    """Return ``sites + branch * kept``.

    Args:
        sites (Tensor): Sites of shape (B, N, C).
        branch (Tensor): Branch of the same shape, under autocast in half precision.
        kept (Tensor, optional): Factor of each image's branch, (B, 1, 1), without a gradient. Defaults to None, 1.
        grid (Grid, optional): Geometry, whose ``kernels`` may ask for single layers. Defaults to None.

    Returns:
        Tensor: Sites of shape (B, N, C), in the wider dtype of ``sites`` and ``branch``.

    Raises:
        RuntimeError: By torch, if a second derivative is requested; ``kernels='layers'`` supports it.
    """
    if kept is None:
        return sites + branch
    if not fuse_residual(grid):
        return sites + branch * kept
    with excluding_autocast(sites):
        return _AddBranch.apply(sites, branch, kept)


class _AddBranch(torch.autograd.Function):
    # Outputs are given, so that mixed dtypes take one pass without copies, and results keep the dtype of the sum
    @staticmethod
    def forward(ctx, sites: Tensor, branch: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.dtypes = sites.dtype, branch.dtype
        output = torch.empty_like(sites, dtype=torch.promote_types(*ctx.dtypes))
        return torch.addcmul(sites, branch, kept, out=output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        [kept], [of_sites, of_branch] = ctx.saved_tensors, ctx.dtypes
        needs_sites, needs_branch, _ = ctx.needs_input_grad
        grad_branch = torch.mul(grad, kept, out=torch.empty_like(grad, dtype=of_branch)) if needs_branch else None
        return grad.to(of_sites) if needs_sites else None, grad_branch, None
