"""Every response norm computes the same function of the visible sites in every execution."""

import math

import pytest
import torch
from test_invariants import CELLS, EXECUTIONS, assert_same, masked_pixels, needs_minkowski, values_and_gradients
from torch import nn

from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.models.execution import Grid, get_execution
from mmconvnextv2.models.response_norms import AGGREGATIONS, NORMALIZATIONS
from mmconvnextv2.ops.dispatch import fuse_mlp

NORMS = [
    dict(type='GRN', aggregation='L1'),
    dict(type='GRN', aggregation='average'),
    dict(type='GRN', normalization='standardize'),
    dict(type='GRN', normalization='1/sum'),
    dict(type='GRN', normalization='none', residual=False),
    dict(type='GRN', aggregation='none'),
    dict(type='GRN', affine=False),
    dict(type='LRN', alpha=1.0),
    dict(type='BN'),
    dict(type='LN'),
    dict(type='SE', ratio=4),
    dict(type='CBAM', ratio=4),
    None,
]
every_norm = pytest.mark.parametrize('norm', NORMS, ids=lambda norm: '-'.join(map(str, (norm or {0: 'V1'}).values())))
MASKING = ('packed', pytest.param('minkowski', marks=needs_minkowski))


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make(make_backbone, norm):
    """Return a function that builds a training backbone with the norm; without one, with LayerScale."""
    return lambda: make_backbone(response_norm=norm, layer_scale_init_value=0.0 if norm else 1.0)


def run(model, images, *args):
    """Values, gradients, and what the forward leaves in the running statistics."""
    return values_and_gradients(model, images, *args) + [buffer.double() for buffer in model.buffers()]


@every_norm
@pytest.mark.parametrize('execution', MASKING)
def test_executions_agree(make, images, execution):
    """Values, gradients and running statistics equal those of the masked reference."""
    assert_same(run(make(), images, CELLS, execution), run(make(), images, CELLS, 'masked'))


@every_norm
def test_all_visible_is_dense(make, images):
    """With every cell visible all executions, the leaky one too, give the dense values, gradients and statistics."""
    everything, expected = torch.arange(6).expand(2, 6), run(make(), images)
    for execution in ('masked', 'packed', 'leaky'):
        assert_same(run(make(), images, everything, execution), expected)


@every_norm
@pytest.mark.parametrize('execution', EXECUTIONS)
def test_masked_pixels_do_not_matter(make, images, execution):
    """NaN in masked pixels changes no value, no gradient and no running statistic."""
    spoiled = torch.where(masked_pixels(images, CELLS), math.nan, images)
    expected = run(make(), images, CELLS, execution)
    assert_same(run(make(), spoiled, CELLS, execution), expected)
    assert all(one.isfinite().all() for one in expected)


@every_norm
@pytest.mark.parametrize('execution', (None, 'masked', 'packed'))
def test_batch_equals_single_images(make, images, execution):
    """In evaluation a batch gives what its images give one at a time, dense or masked."""
    model, cells = make(), CELLS if execution else None
    model(images, cells, execution)  # gives batch norm running statistics
    model.eval()
    for image in range(2):
        alone = slice(image, image + 1)
        assert_same(
            [output[alone] for output in model(images, cells, execution)],
            model(images[alone], None if cells is None else cells[alone], execution),
        )


@every_norm
def test_state_dict_does_not_depend_on_execution(make, images):
    """A forward in any execution leaves the same names and shapes."""
    model = make()
    before = {name: value.shape for name, value in model.state_dict().items()}
    for execution in ('masked', 'packed', 'leaky'):
        model(images, CELLS, execution)
    assert {name: value.shape for name, value in model.state_dict().items()} == before


@pytest.mark.parametrize('execution', MASKING)
def test_site_gate_is_a_convolution_that_reads_zero_at_masked_sites(execution):
    """CBAM's site gate equals one convolution from two channels to one over a map with masked sites set to zero."""
    torch.manual_seed(0)
    gate = nn.Conv2d(2, 2, 7, padding=3, groups=2, bias=False).double()
    walk, cells = get_execution(execution, True), torch.tensor([[1, 2]])
    _, grid = walk.enter(torch.zeros(1, 3, 64, 64, dtype=torch.float64), cells, nn.Conv2d(3, 2, 4, 4).double())
    sites = torch.randn(1, 128, 2, dtype=torch.float64)
    features = walk.leave(sites, Grid(16, 16, 4, cells))  # (1, 2, 16, 16), zero at masked sites
    expected = nn.functional.conv2d(features, gate.weight.transpose(0, 1), padding=3)
    ours = walk.leave(walk.depthwise(sites, grid, gate).sum(-1, keepdim=True), grid)
    shown = walk.leave(torch.ones_like(sites[..., :1]), grid) > 0
    torch.testing.assert_close(ours[shown], expected[shown], rtol=1e-9, atol=1e-9)


def test_default_block_is_the_fused_one_bit_for_bit():
    """GRN named with all its defaults takes the fused path and gives the bits of a block that names none."""
    named = dict(type='GRN', aggregation='L2', normalization='x/sum', residual=True, affine=True)
    blocks = [ConvNeXtV2Block(4), ConvNeXtV2Block(4, response_norm=named)]
    for block in blocks:
        torch.manual_seed(0)
        for parameter in block.parameters():
            nn.init.normal_(parameter)
    sites, dense = torch.randn(2, 64, 4), get_execution('dense', False)
    grid = Grid(8, 8, 4)
    one, other = (block(sites, grid, dense) for block in blocks)
    assert torch.equal(one, other)
    assert all(fuse_mlp(grid, block.pointwise_conv1, block.grn, block.pointwise_conv2) for block in blocks)


def test_each_norm_is_another_function(make_backbone, images):
    """No option is ignored: with the same weights elsewhere, all norms of the tables give different maps."""
    configs = [
        dict(type='GRN', aggregation=one, normalization=other) for one in AGGREGATIONS for other in NORMALIZATIONS
    ] + NORMS[6:]
    maps = [make_backbone(response_norm=config)(images)[3].detach() for config in configs]
    for index, one in enumerate(maps):
        assert all((one - other).abs().max() > 1e-6 for other in maps[:index]), configs[index]
