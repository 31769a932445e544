"""Passes over the hidden features of a response MLP: the operations of 4C channels between its matrix products.

On the CPU they are torch's operations, each a pass over memory. On CUDA Triton kernels make one pass where those make
several, and compute the activation anew where that saves one. Letters: h (B, N, D) before GELU, a = gelu(h), s GRN's
scale (B, 1, D), f the factor (B, 1, D) of ``grn.scale_backward``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from .grn import add_product, channel_norm
from .reductions import fill_masked, statistics_dtype


class Hidden:
    """Hidden features h (B, N, D), and which of their sites count in norms (B, N, 1)."""

    def __init__(self, h: Tensor, site_mask: Tensor | None) -> None:
        self.h, self.site_mask = h, site_mask
        self._activation: Tensor | None = None

    def activation(self) -> Tensor:
        """Return a, computed once."""
        if self._activation is None:
            self._activation = F.gelu(self.h)
        return self._activation

    def norm(self, keep: bool) -> Tensor:
        """Return the norms of a, (B, 1, D); ``keep`` tells that :meth:`activation` is asked for next."""
        return channel_norm(self.activation(), self.site_mask)

    def scaled(self, scale: Tensor) -> Tensor:
        """Return a * s; the last call of a forward, which may overwrite a."""
        return self.activation().mul_(scale)

    def scaled_with_gradient(self, grad: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return a * s, and the gradient of s, (B, 1, D), from that of the product."""
        grad_scale = (grad * self.activation()).sum(1, keepdim=True, dtype=statistics_dtype(grad.dtype))
        return self.activation() * scale, grad_scale

    def gradient(self, grad: Tensor, scale: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of h, gelu'(h) * (grad * s + a * f), a * f at sites that count only, and its sum (D, ).

        The last call of a backward: ``grad``, the gradient of a * s (of a where ``scale`` is None), is overwritten.
        """
        if scale is not None:
            grad = grad.mul_(scale)
        grad = add_product(grad, fill_masked(self.activation(), self.site_mask), factor)
        torch.ops.aten.gelu_backward.grad_input(grad, self.h, grad_input=grad)
        return grad, grad.sum((0, 1))


def join_norms(norms: list[Tensor]) -> Tensor:
    """Return the norms (B, 1, D) of features of which some norms are those of a part each."""
    return norms[0] if len(norms) == 1 else torch.cat(norms, 1).square().sum(1, keepdim=True).sqrt()


class KernelHidden(Hidden):
    """The same through Triton kernels, which keep sums in float32 and compute a themselves."""

    def __init__(self, h: Tensor, site_mask: Tensor | None) -> None:
        super().__init__(h.contiguous(), None if site_mask is None else site_mask.contiguous())

    def activation(self) -> Tensor:
        """Return a, and keep it no longer."""
        activation, self._activation = self._activation, None
        return F.gelu(self.h) if activation is None else activation

    def norm(self, keep: bool) -> Tensor:
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
    """Return a, empty unless it is to be kept, and its norms (B, 1, D)."""
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
    """Return a * s, and the gradient of s, (B, 1, D), from that of the product."""
    from .kernels import gelu

    return gelu.scaled_with_gradient(h, scale, grad)


@gelu_scaled_with_gradient.register_fake
def _(h: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(scale, dtype=statistics_dtype(h.dtype))


@custom_op('mmconvnextv2::gelu_gradient', mutates_args=('grad',))
def gelu_gradient(h: Tensor, site_mask: Tensor | None, scale: Tensor | None, factor: Tensor, grad: Tensor) -> Tensor:
    """Overwrite ``grad`` as :meth:`Hidden.gradient` does, and return the sum (D, )."""
    from .kernels import gelu

    return gelu.gradient(h, site_mask, scale, factor, grad)


@gelu_gradient.register_fake
def _(h: Tensor, site_mask: Tensor | None, scale: Tensor | None, factor: Tensor, grad: Tensor) -> Tensor:
    return h.new_empty(h.shape[-1])
