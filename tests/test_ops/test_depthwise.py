"""The depthwise convolution with a backward pass of its own is torch's, on maps and on visible sites."""

import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmconvnextv2.models.execution.dense import Dense
from mmconvnextv2.models.execution.packed import Packed
from mmconvnextv2.ops.cells import gather, scatter
from mmconvnextv2.ops.depthwise_cpu import depthwise_map, depthwise_reference
from mmconvnextv2.ops.dispatch import choose_depthwise
from mmconvnextv2.ops.grid import Grid

MODULE = importlib.import_module('mmconvnextv2.ops.depthwise_cpu')


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def gradients(output, inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, dtype=output.dtype))


@pytest.mark.parametrize(
    'batch, channels, height, width, side',
    [(2, 3, 5, 4, 3), (1, 2, 32, 32, 7), (2, 5, 33, 20, 7), (1, 4, 70, 65, 5), (3, 1, 1, 1, 7), (2, 2, 7, 40, 1)],
)
def test_map(batch, channels, height, width, side):
    """Values and all gradients equal torch's convolution in float64, for maps smaller, larger and not a multiple of a
    tile."""
    torch.manual_seed(0)
    inputs = draw(batch, channels, height, width), draw(channels, 1, side, side), draw(channels)
    ours = depthwise_map(inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
    theirs = F.conv2d(*inputs, padding=side // 2, groups=channels)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('stride', [4, 8, 16, 32])
@pytest.mark.parametrize('bias', [True, False])
def test_visible_sites(stride, bias):
    """On visible sites values and gradients equal those of laying the sites out, convolving and gathering, at every
    stage; border cells and neighbouring ones included."""
    torch.manual_seed(0)
    height, width = 96 // stride, 160 // stride
    cells = torch.stack([torch.tensor([0, 1, 4, 8, 9, 14]), torch.tensor([2, 3, 5, 6, 7, 12])])
    grid = Grid(height, width, stride, visible_cells=cells)
    conv = nn.Conv2d(6, 6, 7, padding=3, groups=6, bias=bias).double()
    sites = draw(2, 6 * grid.patch**2, 6)
    inputs = [sites, *conv.parameters()]
    assert choose_depthwise(sites, grid, conv) == 'cpu'
    ours = Packed().depthwise(sites, grid, conv)
    theirs = gather(F.conv2d(scatter(sites, grid), *conv.parameters(), padding=3, groups=6), cells, grid.patch)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('values', [1, 2 * 6 * 10 * 12])
def test_tiles_at_a_time(values, monkeypatch):
    """The weight gradient summed over one tile at a time, or over groups of which the last is smaller, is torch's."""
    monkeypatch.setattr(MODULE, 'VALUES', values)  # one or two of three images
    torch.manual_seed(0)
    features, grad = draw(3, 6, 10, 12).detach(), draw(3, 6, 10, 12).detach()
    ours = MODULE.weight_gradient(features.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1), 7)
    torch.testing.assert_close(ours, torch.nn.grad.conv2d_weight(features, (6, 1, 7, 7), grad, padding=3, groups=6))


@pytest.mark.parametrize('values', [1, 4 * 14 * 14 * 6])
def test_windows_at_a_time(values, monkeypatch):
    """Windows of one visible cell at a time, or of groups of which the last is smaller, give values and gradients of
    convolving the map; a second block finds the windows' index made."""
    monkeypatch.setattr(MODULE, 'VALUES', values)  # one or four of six cells of 8 x 8 sites
    torch.manual_seed(0)
    cells = torch.tensor([[0, 1, 4], [2, 3, 5]])
    grid = Grid(16, 24, 4, visible_cells=cells).with_packed_index()
    conv = nn.Conv2d(6, 6, 7, padding=3, groups=6).double()
    inputs = [draw(2, 192, 6), *conv.parameters()]
    ours = Packed().depthwise(inputs[0], grid, conv)
    index = grid.packed_index.windows(3)
    theirs = gather(F.conv2d(scatter(inputs[0], grid), *inputs[1:], padding=3, groups=6), cells, 8)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other)
    assert grid.packed_index.windows(3) is index


def test_finite_differences():
    """gradcheck finds the gradients that the values have."""
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(depthwise_map, (draw(2, 2, 6, 5), draw(2, 1, 3, 3), draw(2)))


@pytest.mark.parametrize('wanted', [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients(wanted):
    """An input that needs no gradient gets none, and the others keep theirs, as with frozen layers."""
    torch.manual_seed(0)
    inputs = [
        tensor.detach().requires_grad_(flag)
        for tensor, flag in zip((draw(1, 3, 9, 9), draw(3, 1, 7, 7), draw(3)), wanted)
    ]
    [ours] = gradients(depthwise_map(*inputs), [tensor for tensor in inputs if tensor.requires_grad])
    [theirs] = gradients(depthwise_reference(*inputs), [tensor for tensor in inputs if tensor.requires_grad])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('execution', ['dense', 'packed'])
def test_autocast(dtype, execution):
    """Under autocast the output is half precision, parameters get float32 gradients, and both are within its rounding
    of float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    grid = Grid(24, 24, 4, visible_cells=torch.tensor([[0, 1, 5], [2, 4, 8]]) if execution == 'packed' else None)
    sites = draw(2, 192 if execution == 'packed' else 576, 8, dtype=torch.float32)
    run = Packed() if execution == 'packed' else Dense()
    with torch.autocast('cpu', dtype=dtype):
        half = run.depthwise(sites, grid, conv)
    assert half.dtype == dtype
    found = gradients(half, [sites, *conv.parameters()])
    assert all(gradient.dtype == torch.float32 for gradient in found)
    exact_sites, exact_conv = sites.detach().double().requires_grad_(), nn.Conv2d(8, 8, 7, padding=3, groups=8).double()
    exact_conv.load_state_dict(conv.state_dict())
    exact = run.depthwise(exact_sites, grid, exact_conv)
    torch.manual_seed(1)
    noise = torch.randn_like(half).double()
    wanted = torch.autograd.grad(exact, [exact_sites, *exact_conv.parameters()], noise)
    for one, other in zip([half, *found], [exact, *wanted], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02 * float(other.detach().abs().max()))


def test_keeps_visible_sites_alone():
    """For the backward pass of visible sites the sites and the weight are kept, and no map."""
    kept = []
    conv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    grid = Grid(56, 56, 4, visible_cells=torch.arange(19).expand(2, 19))
    sites = draw(2, 19 * 64, 4, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        Packed().depthwise(sites, grid, conv)
    assert sorted(kept) == sorted([sites.numel(), conv.weight.numel()])


def test_second_derivatives_are_refused():
    """A derivative of the gradient raises; the reference has it."""
    inputs = draw(1, 2, 5, 5), draw(2, 1, 3, 3), draw(2)
    [first] = torch.autograd.grad(depthwise_map(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()
    [first] = torch.autograd.grad(depthwise_reference(*inputs).square().sum(), inputs[:1], create_graph=True)
    torch.autograd.grad(first.sum(), inputs[0])


def test_layers_that_are_watched_or_special_stay():
    """A layer with a hook, another stride or padding mode, a subclass, and inference use torch's convolution."""

    class Special(nn.Conv2d):
        pass

    sites, grid = draw(1, 64, 4, dtype=torch.float32), Grid(8, 8, 4)
    make = dict(in_channels=4, out_channels=4, kernel_size=7, padding=3, groups=4)
    assert choose_depthwise(sites, grid, nn.Conv2d(**make)) == 'cpu'
    assert choose_depthwise(sites, replace(grid, kernels='layers'), nn.Conv2d(**make)) == 'layer'
    with torch.no_grad():
        assert choose_depthwise(sites, grid, nn.Conv2d(**make)) == 'layer'
    hooked = nn.Conv2d(**make)
    hooked.register_forward_hook(lambda *arguments: None)
    others = [
        nn.Conv2d(**{**make, **change})
        for change in (
            dict(stride=2),
            dict(padding=0),
            dict(padding_mode='reflect'),
            dict(groups=1),
            dict(dilation=2, padding=6),
            dict(kernel_size=(7, 5), padding=(3, 2)),
            dict(kernel_size=2, padding=1),
        )
    ]
    assert {choose_depthwise(sites, grid, conv) for conv in [hooked, Special(**make), *others]} == {'layer'}
    assert choose_depthwise(sites.to('meta'), grid, nn.Conv2d(**make, device='meta')) == 'layer'
