"""The fused GRN equals plain autograd and the layer, and keeps the features once, in their own dtype."""
import importlib

import pytest
import torch
from torch import nn

from mmconvnextv2 import GRN
from mmconvnextv2.ops import grn, grn_reference

MODULE = importlib.import_module('mmconvnextv2.ops.grn')  # the package has a function of this name


def make_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 7, 5), (5, ), (5, )]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def make_counted(masked):
    return (torch.arange(14).view(2, 7, 1) % 3 != 1) if masked else None


@pytest.mark.parametrize('squares', [1, 20, 2**18])
@pytest.mark.parametrize('masked', [False, True])
def test_equals_the_formula(squares, masked, monkeypatch):
    """Values equal Algorithm 1 written out for one image at a time, and values and gradients the layer's and the
    reference's, in float64, whether the norm squares one site at a time, a few or all."""
    monkeypatch.setattr(MODULE, 'SQUARES', squares)
    inputs, counted = make_inputs(), make_counted(masked)
    fused, plain = grn(*inputs, counted), grn_reference(*inputs, counted)
    for image, (x, output) in enumerate(zip(inputs[0], fused)):
        norm = (x if counted is None else x[counted[image, :, 0]]).square().sum(0).sqrt()
        torch.testing.assert_close(output, inputs[1] * (x * norm / (norm.mean() + 1e-6)) + inputs[2] + x)
    layer = GRN(5).double()
    layer.gamma, layer.beta = (nn.Parameter(tensor.detach().clone()) for tensor in inputs[1:])
    torch.testing.assert_close(fused, layer(inputs[0], counted), rtol=1e-12, atol=1e-12)
    noise = torch.randn_like(plain)
    for one, other in zip(torch.autograd.grad(fused, inputs, noise), torch.autograd.grad(plain, inputs, noise)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(masked):
    """Gradients equal finite differences."""
    assert torch.autograd.gradcheck(grn, (*make_inputs(), make_counted(masked)))


def test_dead_channel_has_finite_gradients():
    """A channel that is zero at every site, whose norm has no derivative, gives no NaN."""
    inputs = make_inputs()
    with torch.no_grad():
        inputs[0][..., 0] = 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(grn(*inputs).square().sum(), inputs))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision(dtype, autocast):
    """Half-precision features of size 600, whose squares float16 cannot hold, give values and gradients of their own
    dtype within its rounding of float64, and parameters get gradients of theirs, under autocast too."""
    exact = make_inputs()
    with torch.no_grad():
        exact[0].mul_(600)
        exact[0].copy_(exact[0].to(dtype))
    inputs = [exact[0].detach().to(dtype), *(tensor.detach().float() for tensor in exact[1:])]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        output = grn(*inputs, make_counted(True))
    wanted = grn_reference(*exact, make_counted(True))
    assert output.dtype == dtype
    noise = torch.randn_like(wanted).to(dtype)
    found = torch.autograd.grad(output, inputs, noise)
    assert [gradient.dtype for gradient in found] == [tensor.dtype for tensor in inputs]
    gradients = torch.autograd.grad(wanted, exact, noise.double())
    for one, other in zip([output, *found], [wanted, *gradients]):
        assert (one.double() - other).norm() < 0.01 * other.norm()


def test_keeps_its_input_alone():
    """Of tensors with a value a site and channel, only the half-precision input is kept for backward."""
    inputs, kept = make_inputs(torch.bfloat16), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        grn(*inputs, make_counted(True))
    wide = [tensor for tensor in kept if tensor.numel() == inputs[0].numel()]
    assert [tensor.data_ptr() for tensor in wide] == [inputs[0].data_ptr()] and wide[0].dtype == torch.bfloat16


def test_second_derivatives_are_refused():
    """A derivative of the gradient raises; the reference has it."""
    inputs = make_inputs()
    [first] = torch.autograd.grad(grn(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()
    assert torch.autograd.gradgradcheck(grn_reference, inputs)
