"""Matrix products of the response MLP; in float32 on the CPU those of oneDNN.

torch multiplies float32 matrices on the CPU by its BLAS, which is MKL in its x86 wheels, and copies a bias over the
whole product first. oneDNN's inner product, which torch has for models it compiles, is faster where sites are few or a
weight's transpose is a factor: on two Zen 4 cores a step of FCMAE took 0.82 to 0.96 of its time, one of a dense map
0.91 to 1. In half precision it gained nothing.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import HAS_INNER_PRODUCT, use_onednn


def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply matrices without recording a gradient: ``left @ right + bias``.

    Args:
        left (Tensor): (M, K), or (B, M, K).
        right (Tensor): (K, N), or one for each of ``left``, (B, K, N); a transposed view costs no copy.
        bias (Tensor, optional): Added to each row, (N, ). Defaults to None.

    Returns:
        Tensor: (M, N), or (B, M, N).
    """
    if left.dim() > right.dim():
        return multiply(left.flatten(0, 1), right, bias).unflatten(0, left.shape[:2])
    if right.dim() == 3 and len(right) == 1:
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
