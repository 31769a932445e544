"""Passes over the hidden features of a response MLP: the operations on 4C channels between its matrix products.

Letters: h (B, N, D) before GELU, a = gelu(h), s GRN's scale (B, 1, D), f the factor (B, 1, D) of
``grn.scale_backward``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .grn import add_product, channel_norm
from .reductions import fill_masked_, statistics_dtype


class Hidden:
    """Hidden features h (B, N, D) and the mask (B, N, 1) of sites that count in norms, by torch's operations."""

    def __init__(self, h: Tensor, site_mask: Tensor | None) -> None:
        self.h, self.site_mask = h, site_mask
        self._activation: Tensor | None = None

    def activation(self) -> Tensor:
        """Return a; computed once and cached."""
        if self._activation is None:
            self._activation = F.gelu(self.h)
        return self._activation

    def norm(self, keep: bool) -> Tensor:
        """Return the norms of a, (B, 1, D); ``keep`` is whether :meth:`activation` will be called next."""
        return channel_norm(self.activation(), self.site_mask)

    def scaled(self, scale: Tensor) -> Tensor:
        """Return a * s, which may overwrite a: this is the last call of a forward pass."""
        return self.activation().mul_(scale)

    def scaled_with_gradient(self, grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return a * s, and the gradient of s, (B, 1, D), given the gradient of the product."""
        # In float32 for half precision: the sum runs over all sites of an image
        grad_scale = (grad * self.activation()).sum(1, keepdim=True, dtype=statistics_dtype(grad.dtype))
        return self.activation() * scale, grad_scale

    def gradient(self, grad: Tensor, scale: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of h, gelu'(h) * (grad * s + a * f), and its sum (D, ).

        a * f counts as 0 at sites outside of the mask. ``grad``, the gradient of a * s (of a if ``scale`` is None), is
        overwritten. This is the last call of a backward pass.
        """
        if scale is not None:
            grad = grad.mul_(scale)
        grad = add_product(grad, fill_masked_(self.activation(), self.site_mask), factor)
        # The overload with an output argument writes into grad, which saves a tensor of D channels
        torch.ops.aten.gelu_backward.grad_input(grad, self.h, grad_input=grad)
        return grad, grad.sum((0, 1))


def join_norms(norms: list[Tensor]) -> Tensor:
    """Combine the norms of parts of an image's sites, each (B, 1, D), to those of all sites."""
    # L2 norms: squares add up over parts
    return norms[0] if len(norms) == 1 else torch.cat(norms, 1).square().sum(1, keepdim=True).sqrt()
