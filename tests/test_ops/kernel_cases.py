"""What ``test_kernels.py`` runs in an interpreter of its own: every Triton kernel against torch's operations.

On the CPU through Triton's interpreter, which Triton chooses when it is imported; on a GPU compiled. Shapes are not
multiples of a kernel's tiles.
"""

import dataclasses
import functools
import importlib
import itertools
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmconvnextv2.commands.doctor import find_kernels
from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.models.execution.dense import Dense
from mmconvnextv2.models.execution.packed import Packed
from mmconvnextv2.models.layers import LayerNorm
from mmconvnextv2.ops import block as whole
from mmconvnextv2.ops import depthwise_triton as neighbours
from mmconvnextv2.ops import dispatch, plain, tuning
from mmconvnextv2.ops import response_mlp_triton as mlp
from mmconvnextv2.ops.depthwise import depthwise
from mmconvnextv2.ops.dispatch import INTERPRETED, choose_depthwise, use_triton
from mmconvnextv2.ops.grid import Grid, cell_slots
from mmconvnextv2.ops.kernels import depthwise as depthwise_kernels
from mmconvnextv2.ops.kernels import gelu, layer_norm, parameters, response
from mmconvnextv2.ops.response_mlp import fused_response_mlp, response_mlp_reference
from mmconvnextv2.ops.self_check import kernels_pass

# Torch's operations, which are right, would serve
pytestmark = pytest.mark.filterwarnings('error:Triton kernels are not used')
DEVICE = torch.device('cpu' if INTERPRETED else 'cuda')
TOLERANCE = {torch.float64: dict(rtol=1e-9, atol=1e-9), torch.float32: dict(rtol=1e-4, atol=1e-4)}


def draw(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).to(DEVICE).requires_grad_()


def assert_gradients(ours, theirs, inputs, **tolerance):
    """Compare two outputs and their gradients."""
    torch.testing.assert_close(ours, theirs, **tolerance)
    noise = draw(*theirs.shape, dtype=theirs.dtype).detach()
    wanted = torch.autograd.grad(theirs, inputs, noise)
    for one, other in zip(torch.autograd.grad(ours, inputs, noise), wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def some_sites(batch, num_sites):
    return (torch.arange(batch * num_sites, device=DEVICE) % 3 != 1).view(batch, num_sites, 1)


def test_kernels_serve_this_device():
    """Kernels run here, except inside ``plain()``."""
    assert use_triton(draw(1)) and use_triton(draw(1).bfloat16()) and not use_triton(torch.zeros(1).long())
    with plain():
        assert not use_triton(draw(1))


@pytest.fixture
def unchecked():
    """Kernels that were not compared with the layers yet, here and afterwards."""
    dispatch._passed.clear()
    yield
    dispatch._passed.clear()


def raise_error(error):
    def run(*args, **kwargs):
        raise error

    return run


NO_COMPILER = raise_error(RuntimeError('Failed to find C compiler. Please specify via CC environment variable'))
NO_HEADERS = raise_error(CalledProcessError(1, 'gcc'))


@pytest.mark.parametrize(
    'module, name, wrong, reason',
    [
        (depthwise_kernels, 'transpose_taps', lambda weight: weight.flatten(1).t().contiguous().flip(0), 'is off by'),
        (gelu, 'norm', lambda h, mask, keep: (F.gelu(h), h[:, :1].square().float()), 'a block is off by'),
        (depthwise_kernels, 'convolve', NO_COMPILER, 'install one, such as gcc, or set CC'),
        (layer_norm, 'gradients', NO_HEADERS, r'Python \(python3-dev\)'),
    ],
)
def test_kernels_that_fail_are_not_used(unchecked, monkeypatch, module, name, wrong, reason):
    """A kernel that is wrong or cannot run is found before it serves: one warning says why and what to do, the doctor
    repeats it, and the layers' results follow."""
    execution, grid, num_sites = make_cells(2)
    block, sites = make_block(4), draw(2, num_sites, 4, dtype=torch.float64)
    with plain():
        expected = block(sites, grid, execution)
    monkeypatch.setattr(module, name, wrong)
    with pytest.warns(UserWarning, match=reason) as said:
        ours = [block(sites, grid, execution) for _ in range(2)]
    assert len(said) == 1 and 'MMCONVNEXTV2_KERNELS=torch' in str(said[0].message)
    assert all(torch.equal(one, expected) for one in ours)
    [check] = [check for check in find_kernels() if check.name.endswith(DEVICE.type)]
    assert check.is_problem and "torch's own" in check.found


@pytest.mark.parametrize('computed', [torch.float16, torch.bfloat16])
def test_rounding_is_not_a_fault(monkeypatch, computed):
    """In half precision, gradients that nearly cancel are off by percents, by torch's operations too, and kernels pass;
    a wrong kernel does not."""
    device = torch.zeros(1, device=DEVICE).device
    assert kernels_pass(device, torch.float32, computed)
    monkeypatch.setattr(gelu, 'norm', lambda h, mask, keep: (F.gelu(h), h[:, :1].square().float()))
    with pytest.warns(UserWarning, match='is off by'):
        assert not kernels_pass(device, torch.float32, computed)


def test_check_leaves_no_trace(unchecked):
    """The comparison draws no random numbers, is not counted, needs no gradients, and happens under a compiler too."""
    sites = draw(1, 6, 4)
    conv, grid = nn.Conv2d(4, 4, 3, padding=1, groups=4).to(DEVICE), Grid(2, 3, 4)
    state = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        assert use_triton(sites)
    assert len(dispatch._passed) == 1 and not counter.get_total_flops()
    assert torch.equal(torch.get_rng_state(), state)
    dispatch._passed.clear()
    compiled = torch.compile(lambda sites: depthwise(sites, grid, conv), backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(sites), depthwise(sites, grid, conv))
    assert len(dispatch._passed) == 1


def test_without_triton(monkeypatch):
    """Where Triton is not installed, torch's operations serve."""
    monkeypatch.setattr(dispatch, 'HAS_TRITON', False)
    assert not use_triton(draw(1))


def test_gelu_in_half_precision():
    """In half precision GELU and its slope take a formula for erf: from -9 to 9 they are those of float32 but for the
    last bit, or 1e-6 where they vanish."""
    h = torch.linspace(-9, 9, 4096, device=DEVICE).view(1, 64, 64).half()
    wanted = h.float().requires_grad_()
    F.gelu(wanted).sum().backward()
    [slope], ones = [torch.ones_like(h)], torch.ones(1, 1, 64, device=DEVICE)
    activation, _ = gelu.norm(h, None, keep=True)
    gelu.gradient(h, None, ones, torch.zeros_like(ones), slope)
    last_bit = dict(rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(activation.float(), F.gelu(wanted).detach(), **last_bit)
    torch.testing.assert_close(gelu.scaled(h, ones, 0 * ones[0, 0]).float(), F.gelu(wanted).detach(), **last_bit)
    torch.testing.assert_close(slope.float(), wanted.grad, **last_bit)


@pytest.mark.parametrize('masked, rows, dtype', [(False, 32, torch.float64), (True, 64, torch.float32)])
def test_passes_over_hidden_features(masked, rows, dtype, monkeypatch):
    """Norms, products and gradients of several programs' sites and channels, or of one program's several tiles, equal
    autograd's."""
    monkeypatch.setattr(gelu, 'MOST_ROWS', rows)
    h, scale, factor = draw(2, 40, 66, dtype=dtype), draw(2, 1, 66, dtype=dtype), draw(2, 1, 66, dtype=dtype)
    counted = some_sites(2, 40) if masked else None
    shown = 1.0 if counted is None else counted
    beta = draw(66, dtype=dtype).detach()
    activation, close = F.gelu(h), functools.partial(torch.testing.assert_close, **TOLERANCE[dtype])
    found, squares = gelu.norm(h.detach(), counted, keep=True)
    close(found, activation)
    close(squares.sum(1, keepdim=True), (activation * shown).square().sum(1, keepdim=True))
    close(gelu.norm(h.detach(), counted, keep=False)[1], squares)
    close(gelu.scaled(h.detach(), scale.detach(), beta), activation * scale + beta)

    noise = draw(*h.shape, dtype=dtype).detach()
    objective = (noise * activation * scale).sum() + (shown * activation.square() * factor / 2).sum()
    grad_h, grad_scale = torch.autograd.grad(objective, (h, scale))
    scaled, found_scale, found_beta = gelu.scaled_with_gradient(h.detach(), scale.detach(), beta, noise)
    close(scaled, activation * scale + beta)
    close(found_scale.sum(1, keepdim=True), grad_scale)
    close(found_beta.sum((0, 1)), noise.sum((0, 1)))
    for grad, given in ((noise.clone(), scale.detach()), (noise * scale.detach(), None)):
        total = gelu.gradient(h.detach(), counted, given, factor.detach(), grad)
        close(grad, grad_h)
        close(total.sum((0, 1)), grad_h.sum((0, 1)))


@pytest.mark.parametrize('chunks, channels', [(1, 6), (35, 300)])
def test_response(chunks, channels):
    """Norms, scales and their gradients equal autograd's, for one partial sum and one step of channels or for several,
    and where a channel is zero at every site."""
    partial, gamma = draw(2, chunks, channels, dtype=torch.float64), draw(channels, dtype=torch.float64)
    partial.data = partial.data.square()
    partial.data[1, :, 3] = 0
    norm = partial.sum(1, keepdim=True).sqrt().detach().requires_grad_()
    scale = 1 + gamma * (norm / (norm.mean(-1, keepdim=True) + 1e-6))
    found = response.response(partial.detach(), gamma.detach(), 1e-6)
    torch.testing.assert_close(found, (norm.detach(), scale.detach()))
    noise = draw(2, chunks, channels, dtype=torch.float64).detach()
    grad_norm, grad_gamma = torch.autograd.grad(scale, (norm, gamma), noise.sum(1, keepdim=True))
    factor, by_image = response.response_backward(noise, found[0], gamma.detach(), 1e-6)
    torch.testing.assert_close(factor, torch.where(norm > 0, grad_norm / norm, 0.0).detach())
    sums = response.sum_rows(torch.float64, noise, by_image, noise.square())
    torch.testing.assert_close(sums, [noise.sum((0, 1)), grad_gamma, noise.square().sum((0, 1))])
    torch.testing.assert_close(response.sum_rows(torch.float64, noise, by_image), sums[:2])


@pytest.mark.parametrize('batch', [1, 9])
def test_folded_gradients(batch):
    """The two sums over one product per image equal einsum's, with the share of beta in the weight's gradient."""
    product, weight, scale = (
        draw(*shape, dtype=torch.float64).detach() for shape in ((batch, 18, 70), (18, 70), (batch, 1, 70))
    )
    grad_bias, beta = draw(18, dtype=torch.float64).detach(), draw(70, dtype=torch.float64).detach()
    grad_weight, partial = response.folded_gradients(product, weight, scale, grad_bias, beta)
    wanted = torch.einsum('bcd,bd->cd', product, scale[:, 0]) + grad_bias[:, None] * beta
    torch.testing.assert_close(grad_weight, wanted)
    torch.testing.assert_close(partial.sum(1), torch.einsum('bcd,cd->bd', product, weight))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('num_sites', [40, 200], ids=['unfolded', 'folded'])
def test_half_precision(dtype, num_sites, monkeypatch):
    """In half precision the kernels stay as near to float64 as torch's operations do, which round more often; the
    interpreter cuts bits off where a GPU rounds to bfloat16."""
    module = importlib.import_module('mmconvnextv2.ops.response_mlp')
    monkeypatch.setattr(module, 'fold_scale', lambda x: num_sites > 100)
    inputs = [draw(*shape).detach().to(dtype) for shape in ((2, num_sites, 16), *mlp_shapes(16))]

    def run(kind, triton):
        given = [one.to(kind).requires_grad_() for one in inputs]
        output = fused_response_mlp(*given, some_sites(2, num_sites), triton=triton)
        return [output, *torch.autograd.grad(output, given, draw(*output.shape).detach().to(kind))]

    slack = 8 if INTERPRETED and dtype == torch.bfloat16 else 1.2
    for ours, theirs, wanted in zip(run(dtype, True), run(dtype, False), run(torch.float64, False), strict=True):
        assert ours.dtype == theirs.dtype
        error, allowed = ((found.double() - wanted).norm() for found in (ours, theirs))
        assert error <= slack * allowed + 1e-5 * wanted.norm()


def mlp_shapes(channels):
    hidden = 4 * channels
    return (hidden, channels), (hidden,), (hidden,), (hidden,), (channels, hidden), (channels,)


@pytest.mark.parametrize('shape, masked', itertools.product(((2, 19, 6), (2, 5, 18), (2, 24, 6)), (False, True)))
def test_response_mlp(shape, masked, monkeypatch):
    """Values and all seven gradients equal the reference's, folded, in parts too, or not, all sites counted or some."""
    monkeypatch.setattr(dispatch, 'SHORTEST', 6)
    assert dispatch.count_parts(*shape, 4 * shape[2]) == (4 if shape[1] == 24 else 1)
    module = importlib.import_module('mmconvnextv2.ops.response_mlp')  # the package has a function of this name
    monkeypatch.setattr(module, 'fold_scale', lambda x: x.shape[1] > x.shape[2])  # as on CUDA, where interpreted too
    channels = shape[-1]
    shapes = shape, *mlp_shapes(channels)
    inputs = [draw(*shape, dtype=torch.float64) for shape in shapes]
    counted = some_sites(*shape[:2])[:1].expand(shape[0], -1, -1) if masked else None
    assert_gradients(
        fused_response_mlp(*inputs, counted),
        response_mlp_reference(*inputs, counted),
        inputs,
        **TOLERANCE[torch.float64],
    )


def test_sums_repeat_to_the_bit():
    """Two calls give the same bits: no sum depends on the order in which programs finish."""
    inputs = [draw(1, 70, 8), draw(32, 8), draw(32), draw(32), draw(32), draw(8, 32), draw(8)]
    first, second = (torch.autograd.grad(fused_response_mlp(*inputs).square().sum(), inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


CELLS = torch.tensor([[0, 1, 4, 8, 9, 14], [2, 3, 5, 6, 7, 12]], device=DEVICE)  # of 3 x 5, neighbours and at borders


def make_map(height, width):
    return Dense(), Grid(height, width, 4), height * width


def make_cells(patch, num_cells=6):
    grid = Grid(3 * patch, 5 * patch, 32 // patch, visible_cells=CELLS[:, :num_cells])
    return Packed(), grid, num_cells * patch**2


def make_layers(channels, side, bias=True):
    conv = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=bias)
    norm = LayerNorm(channels)
    for parameter in (*conv.parameters(), *norm.parameters()):
        parameter.data = draw(*parameter.shape, dtype=torch.float64).detach()
    return conv, norm


@pytest.mark.parametrize(
    'walk, side, channels, bias',
    [
        (make_map(5, 3), 3, 66, True),
        (make_map(3, 4), 7, 5, False),
        (make_map(4, 9), 7, 32, False),
        (make_cells(8, num_cells=2), 7, 4, True),
        (make_cells(4, num_cells=3), 7, 3, False),
        (make_cells(2), 5, 34, True),
        (make_cells(1), 3, 3, True),
        (make_cells(1), 7, 128, True),
    ],
)
def test_depthwise(walk, side, channels, bias):
    """Convolution, norm of its result and all gradients equal torch's, on whole maps and on visible sites: where one
    kernel does both (powers of two), where two do, and where channels or strips end inside a tile."""
    execution, grid, num_sites = walk
    conv, norm = make_layers(channels, side, bias)
    sites = draw(2, num_sites, channels, dtype=torch.float64)
    assert choose_depthwise(sites, grid, conv, norm) == 'triton+norm'
    normed = execution.depthwise(sites, grid, conv, norm)
    with plain():
        theirs = norm(execution.depthwise(sites, grid, conv))
    assert_gradients(normed, theirs, [sites, *conv.parameters(), *norm.parameters()], **TOLERANCE[torch.float64])
    with torch.no_grad():
        torch.testing.assert_close(norm(execution.depthwise(sites, grid, conv)), theirs, **TOLERANCE[torch.float64])


def make_lists(cells=CELLS):
    """Return the execution, grid and sites per image of cells of one site with lists of their neighbours."""
    grid = Grid(3, 5, 32, visible_cells=cells, cell_slots=cell_slots(cells, 3, 5))
    return Packed(), neighbours.with_neighbours(grid), cells.shape[1]


def test_lists_hold_visible_neighbours():
    """Each list has the visible cells of the same image within 3 rows and columns, by their tap, and their number;
    where most cells are visible there are no lists."""
    _, grid, visible = make_lists()
    lists, cells = grid.neighbours.tolist(), CELLS.tolist()
    for image, place in itertools.product(range(len(cells)), range(visible)):
        wanted = []
        for other in range(visible):
            positions = (divmod(cells[image][one], 5) for one in (place, other))
            down, right = (there - here for here, there in zip(*positions, strict=True))
            if abs(down) <= 3 and abs(right) <= 3:
                wanted.append(64 * (image * visible + other) + (down + 3) * 7 + right + 3)
        found = lists[image * visible + place]
        assert found[-1] == len(wanted) and sorted(found[: len(wanted)]) == sorted(wanted)
    assert make_lists(torch.arange(15, device=DEVICE)[None, :8])[1].neighbours is None


@pytest.mark.parametrize('side, channels, bias', [(7, 66, True), (7, 5, False), (5, 8, True)])
def test_depthwise_through_lists(side, channels, bias):
    """Through lists of neighbours, one iteration or several, values and gradients are torch's too; a smaller kernel
    does without them."""
    execution, grid, num_sites = make_lists()
    conv, norm = make_layers(channels, side, bias)
    sites = draw(2, num_sites, channels, dtype=torch.float64)
    ours = execution.depthwise(sites, grid, conv, norm)
    with plain():
        theirs = norm(execution.depthwise(sites, grid, conv))
    assert_gradients(ours, theirs, [sites, *conv.parameters(), *norm.parameters()], **TOLERANCE[torch.float64])
    broken = dataclasses.replace(grid, neighbours=torch.zeros_like(grid.neighbours))  # no neighbour, not even itself
    with torch.no_grad():
        assert torch.equal(execution.depthwise(sites, broken, conv, norm), ours) == (side != 7)


def test_depthwise_without_norm():
    """Without a norm gradients are torch's too, those that are wanted alone; inference gives the bits of training."""
    execution, grid, num_sites = make_cells(2)
    conv, norm = make_layers(3, 3)
    conv.weight.requires_grad_(False)
    sites = draw(2, num_sites, 3, dtype=torch.float64)
    with plain():
        theirs = execution.depthwise(sites, grid, conv)
    assert_gradients(execution.depthwise(sites, grid, conv), theirs, [sites, conv.bias], **TOLERANCE[torch.float64])
    normed = execution.depthwise(sites, grid, conv, norm)
    with torch.no_grad():
        assert torch.equal(execution.depthwise(sites, grid, conv, norm), normed)


def test_visible_sites_alone_are_kept():
    """For the backward pass sites before and after the convolution are kept, two numbers a site, and no map; torch's
    counter knows the multiplications."""
    execution, grid, num_sites = make_cells(1, num_cells=2)
    conv, norm = make_layers(3, 3)
    sites, kept = draw(2, num_sites, 3, dtype=torch.float64), []
    execution.depthwise(sites, grid, conv, norm)  # the first run makes the operator known to the counter
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda tensor: tensor):
        with FlopCounterMode(display=False) as counter:
            execution.depthwise(sites, grid, conv, norm)
    wide, narrow = sites.numel(), 2 * num_sites
    assert sorted(kept) == sorted([wide, wide, narrow, narrow, conv.weight.numel(), norm.weight.numel()])
    assert counter.get_total_flops() == 2 * sites.numel() * 9


def make_block(channels, **options):
    block = ConvNeXtV2Block(channels, **options).double()
    for parameter in block.parameters():
        parameter.data = draw(*parameter.shape, dtype=torch.float64).detach() / 2
    return block.to(DEVICE)


@pytest.mark.parametrize('walk', [make_lists(), make_map(2, 3), make_map(5, 9)], ids=['cells', 'map', 'folded'])
@pytest.mark.parametrize('how', ['eager', 'compiled', 'recomputed'])
def test_block(walk, how, monkeypatch):
    """A whole block through kernels, compiled as one graph and computed again too, equals the plain one, with the same
    images dropped from the same random numbers."""
    for name in ('block', 'response_mlp'):  # as on a GPU
        module = importlib.import_module(f'mmconvnextv2.ops.{name}')
        monkeypatch.setattr(module, 'fold_scale', lambda x: x.shape[1] > 3 * x.shape[2])
    execution, grid, num_sites = walk
    block, sites = make_block(3, drop_path_rate=0.5), draw(4, num_sites, 3, dtype=torch.float64)
    if grid.is_packed:
        execution, grid, num_sites = make_lists(CELLS.repeat(2, 1))
    torch.manual_seed(3)
    with plain():
        theirs = block(sites, grid, execution)
    assert len((theirs - sites).flatten(1).any(1).unique()) == 2  # some images are dropped
    torch.manual_seed(3)
    run = torch.compile(block, backend='aot_eager', fullgraph=True) if how == 'compiled' else block
    if how == 'recomputed':
        ours = checkpoint(run, sites, grid, execution, use_reentrant=False)
    else:
        ours = run(sites, grid, execution)
    assert_gradients(ours, theirs, [sites, *block.parameters()], **TOLERANCE[torch.float64])


@pytest.mark.parametrize('frozen', [('sites',), ('depthwise_conv', 'norm'), ('grn', 'pointwise_conv2')])
def test_block_with_frozen_parts(frozen, monkeypatch):
    """What does not need a gradient gets none, and what does gets the plain one's, also where the scale is folded into
    the second weight for many sites, cut into parts."""
    monkeypatch.setattr(importlib.import_module('mmconvnextv2.ops.block'), 'fold_scale', lambda x: 'norm' in frozen)
    execution, grid, num_sites = make_map(4, 5)
    block = make_block(5)
    sites = draw(2, num_sites, 5, dtype=torch.float64).detach().requires_grad_('sites' not in frozen)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name.split('.')[0] not in frozen)
    with plain():
        theirs = block(sites, grid, execution)
    wanted = [one for one in (sites, *block.parameters()) if one.requires_grad]
    ours = block(sites, grid, execution)
    assert_gradients(ours, theirs, wanted, **TOLERANCE[torch.float64])
    ours = block(sites, grid, execution)
    ours.sum().backward()
    assert all((one.grad is not None) == one.requires_grad for one in (sites, *block.parameters()))
    with torch.no_grad():
        assert torch.equal(block(sites, grid, execution), ours)


def test_parameters_are_laid_out():
    """Taps are the transposed weight, casts are rounded as torch rounds, and what needs no cast is the tensor itself,
    in tensors of several programs and in weights that are transposed views."""
    weight, *linears = (draw(*shape).detach() for shape in ((34, 1, 3, 3), (40, 34), (40,), (34, 40), (34,)))
    linears[2] = linears[2].t().contiguous().t()
    for dtype, second in itertools.product((torch.float16, torch.float32), (True, False)):
        taps, *casts = parameters.lay_out(weight, *linears, dtype, second)
        assert torch.equal(taps, weight.flatten(1).t())
        for place, (one, given) in enumerate(zip(casts, linears, strict=True)):
            if dtype == torch.float32 or place > 1 and not second:
                assert one is given
            else:
                assert torch.equal(one, given.to(dtype))


def test_second_derivatives_are_refused():
    """A derivative of the gradient raises."""
    execution, grid, num_sites = make_cells(1)
    conv, norm = make_layers(3, 3)
    sites = draw(2, num_sites, 3, dtype=torch.float64)
    outputs = execution.depthwise(sites, grid, conv), execution.depthwise(sites, grid, conv, norm)
    for output in (*outputs, make_block(3)(sites, grid, execution)):
        [first] = torch.autograd.grad(output.square().sum(), sites, create_graph=True)
        with pytest.raises(RuntimeError, match='once_differentiable'):
            first.sum().backward()


def test_hooks_fire():
    """What kernels may not replace runs as it is: a layer with a hook fires, and gives the same."""
    execution, grid, num_sites = make_cells(1)
    block, seen = make_block(3), []
    sites = draw(2, num_sites, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = block(sites, grid, execution)
        for layer in (block.depthwise_conv, block.norm, block.grn):
            layer.register_forward_hook(lambda module, args, output: seen.append(module))
        torch.testing.assert_close(block(sites, grid, execution), expected, **TOLERANCE[torch.float64])
    assert seen == [block.depthwise_conv, block.norm, block.grn]


def test_autocast():
    """Under autocast a block's branch is half precision, parameters get float32 gradients, and both are near those of
    float64."""
    execution, grid, num_sites = make_cells(1)
    block, sites = make_block(4), draw(2, num_sites, 4, dtype=torch.float64)
    with plain():
        theirs = block(sites, grid, execution)
    exact = torch.autograd.grad(theirs, [sites, *block.parameters()], torch.ones_like(theirs))
    block, sites = block.float(), sites.detach().float().requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        branch = execution.depthwise(sites, grid, block.depthwise_conv, block.norm)
        ours = block(sites, grid, execution)
    assert branch.dtype == torch.bfloat16 and ours.dtype == torch.float32
    found = torch.autograd.grad(ours, [sites, *block.parameters()], torch.ones_like(ours))
    for one, other in zip([ours, *found], [theirs, *exact], strict=True):
        assert one.dtype == torch.float32
        assert (one.double() - other).norm() < 0.05 * other.norm()


def test_operators_keep_their_contracts():
    """Schemas say what is overwritten, and shapes and dtypes without values are those with them."""

    def tensors(*shapes):
        return [draw(*shape).detach() for shape in shapes]

    counted, parameters = some_sites(2, 5), tensors(*mlp_shapes(6))
    x, h, vector = tensors((2, 5, 6), (2, 5, 24), (2, 1, 24))
    x, h = x.bfloat16(), h.bfloat16()
    kept_parameters = parameters[0], *parameters[2:5]
    features = h, vector, vector.clone(), kept_parameters[0].bfloat16(), kept_parameters[3].bfloat16()
    geometry = (2, 3, 0, None, None)
    sites, weight, bias, norm_weight, norm_bias, mean, rstd, taps = tensors(
        (1, 6, 4), (4, 1, 3, 3), (4,), (4,), (4,), (1, 6), (1, 6), (9, 4)
    )
    lists_of = make_lists()[1].cell_slots
    norm, half, single = (norm_weight, norm_bias, 1e-6), torch.bfloat16, torch.float32
    kept = sites.clone(), mean, rstd, norm_weight
    checks = [
        (neighbours.list_of_neighbours, lists_of),
        (mlp.response_mlp_forward, (x, *parameters, counted, 1e-6, half, True)),
        (mlp.response_mlp_forward, (x, *parameters, None, 1e-6, half, False)),
        (mlp.response_mlp_forward, (x.float(), *parameters, None, 1e-6, single, False)),
        (mlp.response_mlp_backward, (x.clone(), x, *features, *kept_parameters, counted, 1e-6, True)),
        (mlp.response_mlp_backward, (x.clone(), x, *features, *kept_parameters, None, 1e-6, False)),
        (neighbours.site_depthwise, (sites, weight, bias, half, *geometry)),
        (neighbours.site_depthwise_norm, (sites, weight, bias, *norm, True, half, *geometry)),
        (neighbours.site_depthwise_norm, (sites, weight, bias, *norm, False, single, *geometry)),
        (neighbours.site_depthwise_backward, (sites.clone(), sites, taps, False, True, half, *geometry)),
        (neighbours.site_depthwise_backward, (sites.clone(), sites, taps, True, False, half, *geometry)),
        (neighbours.site_depthwise_norm_backward, (sites.clone(), sites, taps, True, True, half, *kept, *geometry)),
    ]
    given = [sites, torch.ones(1, 1, 1, device=DEVICE), weight, bias, *norm[:2], *tensors(*mlp_shapes(4))]
    for kind, fold, keep in ((half, False, True), (half, True, True), (single, False, False)):
        arguments = (*given, 1e-6, 1e-6, kind, fold, keep, *geometry)
        checks.append((whole.block_forward, arguments))
        if keep:
            _, *saved = whole.block_forward(*arguments)
            read = *saved, norm_weight, given[6], given[8], given[9], given[10]
            again = (True, single, 1e-6, kind, fold, *geometry)
            checks.append((whole.block_backward, (sites.clone(), sites, given[1], *read, *again)))
    for operator, arguments in checks:
        torch.library.opcheck(operator, arguments, test_utils=('test_schema', 'test_faketensor'))


@pytest.fixture
def launches(monkeypatch):
    """``benchmarks/launches.py``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'benchmarks'))
    yield importlib.import_module('launches')
    sys.modules.pop('launches')


@pytest.mark.skipif(not INTERPRETED, reason='counts launches of the interpreter')
@pytest.mark.parametrize('fold', [True, False], ids=['folded', 'unfolded'])
@pytest.mark.parametrize('packed', [False, True], ids=['dense', 'packed'])
def test_launches_of_a_block(launches, packed, fold):
    """Forward and backward of a block under autocast take at most 24 launches, 30 where the scale is folded, and one
    operator each: small batches are bound by launches. Layer by layer there are more."""
    count, operators = launches.count_block(packed, fold=fold)
    assert count <= (30 if fold else 24) and operators == 2
    assert launches.count_block(packed, kernels='layers')[0] > 2 * count


@pytest.mark.skipif(not INTERPRETED, reason='counts launches of the interpreter')
def test_launches_are_counted(launches):
    """An operation that writes memory counts once, one that may return its argument only if it does not, inside the
    package's operators too, and so does each kernel; views and empty tensors do not count."""
    x, (_, grid, num_sites) = torch.ones(2, 3), make_map(3, 5)
    with launches.Launches() as mode:
        x.t().view(3, 2).to(x.dtype).new_empty(2)
        assert mode.count == 0
        x.t().flatten().add_(1).double()
    assert mode.count == 3 and mode.custom == 0
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    arguments = conv.weight, conv.bias, torch.float32, *grid.kernel_arguments()
    given = draw(1, num_sites, 4).detach()
    with torch.no_grad(), launches.counted_kernels(run=True) as launched, launches.Launches() as mode:
        ours = neighbours.site_depthwise(given, *arguments)[0]
    assert (mode.count, mode.custom, len(launched)) == (1, 1, 1)  # a copy of the weight, and a kernel
    torch.testing.assert_close(ours, depthwise(given, dataclasses.replace(grid, kernels='layers'), conv).detach())


@pytest.fixture
def untimed():
    """Operations that were not timed yet, here and afterwards."""
    for found in (tuning._chosen, tuning._seconds):
        found.clear()
    yield
    for found in (tuning._chosen, tuning._seconds):
        found.clear()


@pytest.mark.parametrize('walk', [make_map(3, 5), make_cells(2)], ids=['dense', 'packed'])
def test_faster_implementation_serves(untimed, monkeypatch, walk):
    """Where cuDNN times its algorithms, kernels and torch's operations are timed once per size, without touching
    gradients, and the fastest one gives the result; a setting and deterministic algorithms leave them alone."""
    execution, grid, num_sites = walk
    block, sites = make_block(4), draw(2, num_sites, 4, dtype=torch.float64)
    expected, seen, time_of = block(sites, grid, execution), [], tuning._time
    depthwise_module = importlib.import_module('mmconvnextv2.ops.depthwise')
    run = depthwise_module._run
    monkeypatch.setattr(tuning, '_time', lambda step, sites: seen.append(step.args[0]) or time_of(step, sites))
    with torch.backends.cudnn.flags(benchmark=True):
        for output in (block(sites, grid, execution), block(sites, grid, execution)):
            torch.testing.assert_close(output, expected, **TOLERANCE[torch.float64])
        assert all(parameter.grad is None for parameter in block.parameters()) and sites.grad is None
        assert len(seen) == 2 * 2 * tuning.ROUNDS and len(tuning.measured()) == 2
        fastest = [min(times, key=times.get) for times in tuning.measured().values()]
        assert list(tuning._chosen.values()) == fastest
        slowest = {key: max(times, key=times.get) for key, times in tuning.measured().items()}
        tuning._chosen.update(slowest)  # a choice is what runs
        operations = []
        monkeypatch.setattr(depthwise_module, '_run', lambda name, *args: operations.append(name) or run(name, *args))
        torch.testing.assert_close(block(sites, grid, execution), expected, **TOLERANCE[torch.float64])
        assert operations == [name for key, name in slowest.items() if key[0].startswith('depthwise')]
        seen.clear()
        block.kernels = 'triton'
        torch.testing.assert_close(block(sites, grid, execution), expected, **TOLERANCE[torch.float64])
        block.kernels = None
    with torch.backends.cudnn.flags(benchmark=True, deterministic=True):
        block(sites, grid, execution)
    assert not seen
