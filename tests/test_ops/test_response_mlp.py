"""The fused response MLP equals plain autograd, and keeps one 4C tensor where plain code keeps four."""

import importlib
import itertools

import pytest
import torch
from small_models import NARROW
from torch import nn

from mmconvnextv2.models.convnext_v2 import ConvNeXtV2
from mmconvnextv2.ops.response_mlp import fused_response_mlp, response_mlp_reference

MODULE = importlib.import_module('mmconvnextv2.ops.response_mlp')  # the package has a function of this name
FOLDED, UNFOLDED = MODULE._Folded, MODULE._Unfolded
SHAPES = {'folded': (1, 9, 3), 'unfolded': (2, 4, 6)}  # sites outnumber channels, and the other way round


def make_inputs(batch, num_sites, channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = 4 * channels
    shapes = [
        (batch, num_sites, channels),
        (hidden, channels),
        (hidden,),
        (hidden,),
        (hidden,),
        (channels, hidden),
        (channels,),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def make_counted(batch, num_sites):
    counted = torch.arange(num_sites) % 3 != 1
    return counted.view(1, -1, 1).expand(batch, -1, -1)


def assert_equals_the_reference(shape, masked):
    """Compare values and all seven gradients with plain autograd, in float64."""
    inputs = make_inputs(*shape)
    counted = make_counted(*shape[:2]) if masked else None
    fused, plain = fused_response_mlp(*inputs, counted), response_mlp_reference(*inputs, counted)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    for ours, theirs in zip(torch.autograd.grad(fused, inputs, weights), torch.autograd.grad(plain, inputs, weights)):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('shape, masked', itertools.product(SHAPES, (False, True)))
def test_equals_the_reference(shape, masked):
    """Values and all seven gradients equal plain autograd in float64, folded or not, with all sites counted or some."""
    assert_equals_the_reference(SHAPES[shape], masked)


@pytest.mark.parametrize('shape, piece', [((1, 90, 16), 2**22), ((1, 90, 16), 2000), ((4, 12, 16), 2000)])
def test_single_precision(shape, piece, monkeypatch):
    """In float32, whose products are oneDNN's on the CPU, values and gradients are those of float64, rounded."""
    monkeypatch.setattr(MODULE, 'PIECE', piece)
    inputs, counted = make_inputs(*shape, dtype=torch.float32), make_counted(*shape[:2])
    exact_inputs = [one.detach().double().requires_grad_() for one in inputs]
    ours, exact = fused_response_mlp(*inputs, counted), response_mlp_reference(*exact_inputs, counted)
    weights = torch.randn_like(ours)
    gradients = torch.autograd.grad(exact, exact_inputs, weights.double())
    for one, other in zip((ours, *torch.autograd.grad(ours, inputs, weights)), (exact, *gradients)):
        assert (one - other).norm() < 1e-6 * other.norm()


@pytest.mark.parametrize('masked', (False, True))
def test_folding_several_images_changes_nothing(masked, monkeypatch):
    """Weights scaled for each of several images at once, as on a GPU, give the reference's values and gradients."""
    monkeypatch.setattr(MODULE, 'fold_scale', lambda x: True)
    assert_equals_the_reference(SHAPES['unfolded'], masked)


@pytest.mark.parametrize(
    'shape, device, folds',
    [
        ((1, 9, 3), 'cpu', True),
        ((2, 9, 3), 'cpu', False),
        ((1, 3, 9), 'cpu', False),
        ((2, 10, 3), 'meta', True),
        ((2, 9, 3), 'meta', False),
        ((2, 3, 9), 'meta', False),
    ],
)
def test_folds_where_it_saves(shape, device, folds, monkeypatch):
    """A scaled weight takes the place of scaled features where that moves fewer bytes; on the CPU where it is smaller,
    and for single images only."""
    made = []
    monkeypatch.setattr(MODULE, '_Folded', lambda *args: made.append(True) or FOLDED(*args))
    monkeypatch.setattr(MODULE, '_Unfolded', lambda *args: made.append(False) or UNFOLDED(*args))
    fused_response_mlp(*(one.to(device) for one in make_inputs(*shape)))
    assert made == [folds]


@pytest.mark.parametrize('shape', SHAPES)
def test_gradcheck(shape):
    """Gradients equal finite differences."""
    inputs = make_inputs(*SHAPES[shape])
    assert torch.autograd.gradcheck(fused_response_mlp, (*inputs, make_counted(*SHAPES[shape][:2])))


@pytest.mark.parametrize(
    'piece, rows, cut',
    [
        (250, 99, [([0, 1], 1), ([2], 1)]),
        (108, 99, [([0], 1), ([1], 1), ([2], 1)]),
        (40, 99, [([0], 3), ([1], 3), ([2], 3)]),
        (999, 1, None),
    ],
)
@pytest.mark.parametrize('shape, masked', itertools.product(((3, 9, 3), (3, 3, 9)), (False, True)))
def test_pieces_change_nothing(piece, rows, cut, shape, masked, monkeypatch):
    """Going over several images, one, a third of one or a site at a time gives the reference's values and gradients."""
    monkeypatch.setattr(MODULE, 'PIECE', piece)
    monkeypatch.setattr(MODULE, 'ROWS', rows)
    cut = cut or [([image], shape[1]) for image in range(3)]  # a site at a time
    pieces = MODULE.chunks(torch.empty(shape), 4 * shape[2])
    assert [(list(range(3))[images], len(parts)) for images, parts in pieces] == cut
    assert all(sum((list(range(shape[1]))[part] for part in parts), []) == list(range(shape[1])) for _, parts in pieces)
    assert_equals_the_reference(shape, masked)


def test_pieces_add_up_in_float32(monkeypatch):
    """In bfloat16 gradients summed over fifty pieces are as near to float64 as those of one."""
    inputs = make_inputs(50, 40, 4, dtype=torch.bfloat16)

    def gradients(inputs):
        return [one.double() for one in torch.autograd.grad(fused_response_mlp(*inputs).sum(), inputs)]

    exact = gradients([one.detach().double().requires_grad_() for one in inputs])
    whole = gradients(inputs)
    monkeypatch.setattr(MODULE, 'PIECE', 1000)
    assert len(MODULE.chunks(torch.empty(50, 40, 4), 16)) == 50
    for pieces, one, wanted in zip(gradients(inputs), whole, exact):
        assert (pieces - wanted).norm() < 1.5 * (one - wanted).norm() + 1e-3 * wanted.norm()


def test_empty_batch():
    """No image gives no output, and gradients of zero."""
    inputs = make_inputs(0, 9, 3)
    gradients = torch.autograd.grad(fused_response_mlp(*inputs).sum(), inputs)
    assert gradients[0].shape == (0, 9, 3) and not any(gradient.any() for gradient in gradients)


def test_dead_channel_has_finite_gradients():
    """A channel that is zero at every site, whose norm has no derivative, gives no NaN."""
    inputs = make_inputs(2, 9, 3)
    with torch.no_grad():
        inputs[1][0], inputs[2][0] = 0, 0  # the first hidden channel is gelu(0) = 0
    gradients = torch.autograd.grad(fused_response_mlp(*inputs).square().sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_second_derivative_is_refused():
    """A second derivative raises in words instead of being silently wrong."""
    inputs = make_inputs(2, 9, 3)
    (gradient,) = torch.autograd.grad(fused_response_mlp(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize('shape', SHAPES)
def test_autocast_follows_the_reference(shape):
    """Under bfloat16 autocast values and gradients stay within bfloat16's precision of the float32 reference."""
    inputs = make_inputs(*SHAPES[shape], dtype=torch.float32)
    plain = response_mlp_reference(*inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        fused = fused_response_mlp(*inputs)
    assert fused.dtype == torch.bfloat16
    assert (fused - plain).norm() < 0.02 * plain.norm()
    ours = torch.autograd.grad(fused.float().square().sum(), inputs)
    theirs = torch.autograd.grad(plain.square().sum(), inputs)
    for one, other in zip(ours, theirs):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize('piece', (MODULE.PIECE, 200))
def test_keeps_one_wide_tensor(piece, monkeypatch):
    """Of 4C channels at every site the operation keeps a value each for backward, in one tensor or one a piece."""
    monkeypatch.setattr(MODULE, 'PIECE', piece)
    inputs = make_inputs(2, 50, 3)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused_response_mlp(*inputs)
    narrow = 2 * 50 * 3 + 2 * 12 + 12 * 3 + 12 + 12 + 3 * 12  # x, norms, weight1, gamma, beta and weight2
    assert sum(kept.values()) == 2 * 50 * 12 + narrow


def test_hooks_choose_the_plain_path():
    """A forward hook on a linear or on GRN still fires, and the output does not change when it does."""
    torch.manual_seed(0)
    model = ConvNeXtV2(NARROW).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    seen = []
    model.stages[1][0].grn.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    for ours, theirs in zip(model(images), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert seen == [(1, 64, 24)]
