"""Matrix products of the response MLP, by oneDNN for float32 on the CPU.

torch multiplies float32 matrices on the CPU with its BLAS, MKL in the x86 wheels, and first copies the bias over the
whole product. oneDNN's inner product, which torch ships for compiled models, is faster if there are few sites or a
factor is a weight's transpose: on two Zen 4 cores, a training step took 0.82 to 0.96 of the time with FCMAE, and 0.91
to 1 on dense maps. In half precision there was no gain.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import HAS_INNER_PRODUCT, use_onednn


def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ right + bias``; not differentiable.

    Args:
        left (Tensor): Matrix (M, K), or matrices (B, M, K).
        right (Tensor): Matrix (K, N), or one per matrix of ``left``, (B, K, N). A transposed view is not copied.
        bias (Tensor, optional): Vector (N, ) added to each row. Defaults to None.

    Returns:
        Tensor: Product (M, N) or (B, M, N).
    """
    if left.dim() > right.dim():
        return multiply(left.flatten(0, 1), right, bias).unflatten(0, left.shape[:2])
    if right.dim() == 3 and len(right) == 1:  # a single image: a batched product could not use oneDNN
        return multiply(left[0], right[0], bias)[None]
    if right.dim() == 2 and use_onednn(left, right):
        return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, 'none', [], '')
    if bias is None:
        return left @ right
    return torch.addmm(bias, left, right) if right.dim() == 2 else torch.baddbmm(bias, left, right)


if HAS_INNER_PRODUCT:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _count(left_shape, weight_shape, *args, **kwargs) -> int:
        """Count a multiply-add as two operations, as torch does for its own products."""
        return 2 * left_shape.numel() * weight_shape[0]
