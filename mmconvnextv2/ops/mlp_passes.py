"""Passes over the hidden features of a response MLP: the operations on 4C channels between its matrix products.

``Hidden`` uses torch's operations, each a pass over memory. ``KernelHidden`` uses Triton kernels, which fuse several
passes into one and recompute the activation where that saves a pass. Letters: h (B, N, D) before GELU, a = gelu(h), s
GRN's scale (B, 1, D), f the factor (B, 1, D) of ``grn.scale_backward``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from .grn import add_product, channel_norm
from .reductions import fill_masked, statistics_dtype


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
        grad = add_product(grad, fill_masked(self.activation(), self.site_mask), factor)
        # The overload with an output argument writes into grad, which saves a tensor of D channels
        torch.ops.aten.gelu_backward.grad_input(grad, self.h, grad_input=grad)
        return grad, grad.sum((0, 1))


def join_norms(norms: list[Tensor]) -> Tensor:
    """Combine the norms of parts of an image's sites, each (B, 1, D), to those of all sites."""
    # L2 norms: squares add up over parts
    return norms[0] if len(norms) == 1 else torch.cat(norms, 1).square().sum(1, keepdim=True).sqrt()


class KernelHidden(Hidden):
    """The same operations as Triton kernels, which accumulate in float32 and recompute a from h."""

    def __init__(self, h: Tensor, site_mask: Tensor | None) -> None:
        # Kernels compute offsets for contiguous memory
        super().__init__(h.contiguous(), None if site_mask is None else site_mask.contiguous())

    def activation(self) -> Tensor:
        """Return a, and drop the cached copy: the caller's product is its only use."""
        activation, self._activation = self._activation, None
        return F.gelu(self.h) if activation is None else activation

    def norm(self, keep: bool) -> Tensor:
        # a is stored only for a product that reads it next; fused passes recompute it from h
        activation, norm = gelu_norm(self.h, self.site_mask, keep)
        self._activation = activation if keep else None
        return norm

    def scaled(self, scale: Tensor) -> Tensor:
        return gelu_scaled(self.h, scale)

    def scaled_with_gradient(self, grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return gelu_scaled_with_gradient(self.h, scale, grad)

    def gradient(self, grad: Tensor, scale: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        return grad, gelu_gradient(self.h, self.site_mask, scale, factor, grad)


@custom_op('mmconvnextv2::gelu_norm', mutates_args=())
def gelu_norm(h: Tensor, site_mask: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    """Return a (empty unless ``keep``) and its norms (B, 1, D)."""
    from .kernels import gelu

    return gelu.norm(h, site_mask, keep)


@gelu_norm.register_fake
def _(h: Tensor, site_mask: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    norm = h.new_empty(h.shape[0], 1, h.shape[2], dtype=statistics_dtype(h.dtype))
    return torch.empty_like(h) if keep else h.new_empty(0), norm


@custom_op('mmconvnextv2::gelu_scaled', mutates_args=())
def gelu_scaled(h: Tensor, scale: Tensor) -> Tensor:
    """Return a * s."""
    from .kernels import gelu

    return gelu.scaled(h, scale)


@gelu_scaled.register_fake
def _(h: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(h)


@custom_op('mmconvnextv2::gelu_scaled_with_gradient', mutates_args=())
def gelu_scaled_with_gradient(h: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return a * s, and the gradient of s, (B, 1, D), given the gradient of the product."""
    from .kernels import gelu

    return gelu.scaled_with_gradient(h, scale, grad)


@gelu_scaled_with_gradient.register_fake
def _(h: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(scale, dtype=statistics_dtype(h.dtype))


@custom_op('mmconvnextv2::gelu_gradient', mutates_args=('grad',))
def gelu_gradient(h: Tensor, site_mask: Tensor | None, scale: Tensor | None, factor: Tensor, grad: Tensor) -> Tensor:
    """Overwrite ``grad`` with the gradient of h, as :meth:`Hidden.gradient` does, and return its sum (D, )."""
    from .kernels import gelu

    return gelu.gradient(h, site_mask, scale, factor, grad)


@gelu_gradient.register_fake
def _(h: Tensor, site_mask: Tensor | None, scale: Tensor | None, factor: Tensor, grad: Tensor) -> Tensor:
    return h.new_empty(h.shape[-1])
