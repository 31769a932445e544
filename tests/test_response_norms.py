"""GRN is the published formula, its variants and competitors are theirs, per image, and safe in half precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.engine.layer_decay import is_exempt_from_weight_decay
from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.models.response_norms import (
    AGGREGATIONS,
    GRN,
    NORMALIZATIONS,
    RESPONSE_NORMS,
    build_response_norm,
    response_scale,
)
from mmconvnextv2.ops.dispatch import fuse_mlp
from mmconvnextv2.ops.grid import Grid

COUNTED = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], dtype=torch.bool)[..., None]


def randomise(module, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.to(dtype)


def make_sites(channels=8, num_sites=6):
    return torch.randn(2, num_sites, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def grn_by_loops(sites, gamma, beta, counted):
    """Algorithm 1 of the paper in numpy, image by image and channel by channel."""
    output = np.empty_like(sites)
    for image in range(len(sites)):
        rows = [row for row, counts in zip(sites[image], counted[image]) if counts]
        norms = [np.sqrt(sum(row[channel] ** 2 for row in rows)) for channel in range(sites.shape[-1])]
        mean = sum(norms) / len(norms)
        for channel, norm in enumerate(norms):
            values = sites[image, :, channel]
            output[image, :, channel] = gamma[channel] * values * norm / (mean + 1e-6) + beta[channel] + values
    return output


@pytest.mark.parametrize('masked', (False, True))
def test_grn_is_the_formula(masked):
    """Values equal Algorithm 1 written with loops, with all sites counted and with some."""
    layer, generator = randomise(GRN(5)), torch.Generator().manual_seed(1)
    sites = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    counted = torch.rand(3, 7, 1, generator=generator) < (0.5 if masked else 2.0)
    counted[:, 0] = True
    expected = grn_by_loops(
        sites.numpy(), *(one.detach().numpy() for one in (layer.gamma, layer.beta)), counted[..., 0].numpy()
    )
    ours = layer(sites, counted if masked else None)
    torch.testing.assert_close(ours.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_grn_ignores_uncounted_values():
    """NaN at a site that does not count changes no other site."""
    layer, sites = randomise(GRN(4)), torch.randn(2, 6, 4, dtype=torch.float64)
    counted = torch.ones(2, 6, 1, dtype=torch.bool)
    counted[:, 2] = False
    spoiled = sites.clone()
    spoiled[:, 2] = torch.nan
    others = [0, 1, 3, 4, 5]
    assert torch.equal(layer(spoiled, counted)[:, others], layer(sites, counted)[:, others])


@pytest.mark.parametrize('masked', (False, True))
def test_grn_gradients(masked):
    """Gradients of sites, gamma and beta equal finite differences."""
    layer, sites = randomise(GRN(3)), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    counted = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)[..., None] if masked else None

    def call(sites, gamma, beta):
        return torch.func.functional_call(layer, dict(gamma=gamma, beta=beta), (sites, counted))

    assert torch.autograd.gradcheck(call, (sites, layer.gamma, layer.beta))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_grn_statistics_are_float32(dtype, tolerance):
    """Responses of 1000 at 8192 sites, whose squares and norms overflow float16, give float64's statistics."""
    sites = (torch.rand(2, 8192, 8, generator=torch.Generator().manual_seed(2)) * 1e3 + 500).to(dtype)
    assert sites.double().square().sum(1).sqrt().min() > torch.finfo(torch.float16).max
    scale = response_scale(sites)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale.double(), response_scale(sites.double()), rtol=1e-5, atol=0)
    layer, exact = randomise(GRN(8), dtype), randomise(GRN(8))
    exact.load_state_dict(layer.state_dict())
    ours = layer(sites)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact(sites.double()), rtol=tolerance, atol=4.0)


@pytest.mark.parametrize('config', [dict(type='XYZ'), dict(eps=1e-6)])
def test_unknown_response_norm_is_refused(config):
    """The error names the argument and what may be chosen."""
    with pytest.raises(ValueError, match=r'response_norm=.*choose from .*GRN'):
        build_response_norm(config, 4)


def variant_by_loops(sites, counted, aggregation, normalization):
    """The rows of tables 2 and 16 in numpy, image by image: the scale of each channel."""
    rows = sites[counted]
    responses = {
        'L2': np.sqrt((rows**2).sum(0)),
        'L1': np.abs(rows).sum(0),
        'average': rows.sum(0) / len(rows),
        'none': sites,
    }[aggregation]
    scales = []
    for response in np.atleast_2d(responses):
        mean = sum(response) / len(response)
        variance = sum((value - mean) ** 2 for value in response) / len(response)
        scales.append(
            {
                'x/sum': response / (mean + 1e-6),
                '1/sum': np.full_like(response, 1 / (mean + 1e-6)),
                'standardize': (response - mean) / np.sqrt(variance + 1e-6),
                'none': response,
            }[normalization]
        )
    return np.stack(scales)


def test_affine_false_warns():
    """The argument that no recipe uses says when it goes."""
    with pytest.warns(FutureWarning, match='will be removed in 0.4'):
        GRN(8, affine=False)


@pytest.mark.parametrize('affine', (True, False))
@pytest.mark.parametrize('residual', (True, False))
@pytest.mark.parametrize('normalization', NORMALIZATIONS)
@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_variants_are_their_formulas(aggregation, normalization, residual, affine):
    """Every aggregation, normalisation, residual and affine equals the formula in numpy over counted sites."""
    layer = randomise(GRN(8, aggregation=aggregation, normalization=normalization, residual=residual, affine=affine))
    sites = make_sites()
    output = layer(sites, COUNTED)
    gamma, beta = (layer.gamma.detach().numpy(), layer.beta.detach().numpy()) if affine else (1.0, 0.0)
    assert len(list(layer.parameters())) == 2 * affine
    for image in range(2):
        values, counted = sites[image].numpy(), COUNTED[image, :, 0].numpy()
        scale = variant_by_loops(values, counted, aggregation, normalization)
        expected = values * scale * gamma + beta + residual * values
        torch.testing.assert_close(
            output[image][counted].detach(), torch.from_numpy(expected[counted]), rtol=1e-9, atol=1e-9
        )


def test_published_numbers_of_a_hand_computed_map():
    """Two channels (3, 4) and (0, 1) at two sites: L2 norms 5 and 1, mean 3, and so on, by hand."""
    sites = torch.tensor([[[3.0, 0.0], [4.0, 1.0]]], dtype=torch.float64)

    def scale(aggregation, normalization):
        return response_scale(sites, None, 0.0, aggregation, normalization).flatten().tolist()

    assert scale('L2', 'x/sum') == pytest.approx([5 / 3, 1 / 3])
    assert scale('L1', 'x/sum') == pytest.approx([7 / 4, 1 / 4])
    assert scale('average', 'x/sum') == pytest.approx([7 / 4, 1 / 4])
    assert scale('L2', '1/sum') == pytest.approx([1 / 3])
    assert scale('L2', 'standardize') == pytest.approx([1, -1])
    assert scale('L2', 'none') == pytest.approx([5, 1])
    assert scale('none', 'x/sum') == pytest.approx([2, 0, 8 / 5, 2 / 5])


@pytest.mark.parametrize('residual', (True, False))
def test_grn_starts_as_the_identity_with_residual(residual):
    """A new GRN returns its input bit for bit; without the residual it starts as x * N(G(x))."""
    sites = make_sites()
    expected = sites if residual else sites * response_scale(sites)
    assert torch.equal(GRN(8, residual=residual).double()(sites), expected)


@pytest.mark.parametrize(
    'config',
    [dict(type='GRN', aggregation=one, normalization=other) for one in AGGREGATIONS for other in NORMALIZATIONS]
    + [dict(type=one) for one in ('LRN', 'BN', 'LN', 'SE')],
    ids=lambda one: '-'.join(one.values()),
)
def test_gradients(config):
    """Gradients of the sites equal finite differences, and none reaches a site that does not count from another."""
    layer, sites = randomise(build_response_norm(config, 8)), make_sites().requires_grad_()
    assert torch.autograd.gradcheck(lambda sites: layer(sites, COUNTED)[COUNTED[..., 0]], (sites,))
    (gradient,) = torch.autograd.grad(layer(sites, COUNTED)[COUNTED[..., 0]].square().sum(), sites)
    assert gradient[COUNTED[..., 0]].any() and not gradient[~COUNTED[..., 0]].any()


def test_lrn_sums_over_neighbouring_channels():
    """Each value is divided by (1 + 1e-4 * sum / 5)^0.75 over the five channels around it, by a loop."""
    sites, expected = make_sites() * 100, make_sites() * 100
    for channel in range(8):
        window = sites[..., max(channel - 2, 0) : channel + 3]
        expected[..., channel] = sites[..., channel] / (1 + 1e-4 * window.square().sum(-1) / 5) ** 0.75
    torch.testing.assert_close(build_response_norm(dict(type='LRN'), 8)(sites, COUNTED), expected)


def test_layer_norm_is_per_site():
    """LN equals torch's functional one over the channels of each site."""
    layer, sites = randomise(build_response_norm(dict(type='LN'), 8)), make_sites()
    torch.testing.assert_close(layer(sites, COUNTED), F.layer_norm(sites, (8,), layer.weight, layer.bias, 1e-6))


def test_batch_norm_counts_visible_sites_of_the_batch():
    """Training values are standardised by mean and biased variance of counted sites of all images, running statistics
    move to their mean and unbiased variance, and evaluation uses those."""
    layer, sites = randomise(build_response_norm(dict(type='BN', momentum=0.25), 8)), make_sites()
    rows = COUNTED[..., 0]
    mean, variance = sites[rows].mean(0), sites[rows].var(0, correction=0)
    norm = layer.batch_norm
    expected = (sites - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layer(sites, COUNTED)[rows], expected[rows])
    torch.testing.assert_close(norm.running_mean, 0.25 * mean)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * sites[rows].var(0))
    layer.eval()
    expected = (sites - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layer(sites, COUNTED)[rows], expected[rows])
    torch.testing.assert_close(layer(sites), expected)


def test_batch_norm_refuses_recomputation():
    """Recomputed blocks would count a batch twice; the error says so."""
    with pytest.raises(ValueError, match='with_cp=True with response_norm=.*twice'):
        ConvNeXtV2('atto', response_norm=dict(type='BN'), with_cp=True)


def gate_by_loops(layer, values):
    """The bottleneck written out: linear, ReLU, linear."""
    first, _, second = layer.mlp
    return second.weight @ (first.weight @ values + first.bias).clamp(min=0) + second.bias


def test_se_gates_channels_by_their_means():
    """Each image's channels are multiplied by sigmoid(W2 relu(W1 mean)), the mean over counted sites."""
    layer, sites = randomise(build_response_norm(dict(type='SE', ratio=2), 8)), make_sites()
    output = layer(sites, COUNTED)
    for image in range(2):
        gate = gate_by_loops(layer, sites[image][COUNTED[image, :, 0]].mean(0)).sigmoid()
        torch.testing.assert_close(output[image], sites[image] * gate)


def test_cbam_gates_channels_then_sites():
    """The channel gate takes means and maxima over counted sites; the site gate is a 7x7 convolution from two pooled
    channels to one, here over a plain map with the weights of the two depthwise channels side by side."""
    layer, sites = randomise(build_response_norm(dict(type='CBAM', ratio=2), 8)), make_sites(num_sites=12)
    counted = torch.arange(12)[None, :, None] % 3 != torch.tensor([0, 1])[:, None, None]
    seen = []

    def depthwise(pooled, conv):
        seen.append(pooled)
        shown = torch.where(counted, pooled, 0.0).view(2, 3, 4, 2).permute(0, 3, 1, 2)
        return conv(shown).permute(0, 2, 3, 1).flatten(1, 2)

    output = layer(sites, counted, depthwise)
    for image in range(2):
        shown = counted[image, :, 0]
        mean, highest = sites[image][shown].mean(0), sites[image][shown].max(0).values
        gated = sites[image] * (gate_by_loops(layer, mean) + gate_by_loops(layer, highest)).sigmoid()
        pooled = torch.stack([gated.mean(-1), gated.max(-1).values])
        torch.testing.assert_close(seen[0][image].T, pooled)
        kernel = layer.spatial.weight.transpose(0, 1)  # (1, 2, 7, 7)
        gate = F.conv2d((pooled * shown).view(1, 2, 3, 4), kernel, padding=3).flatten().sigmoid()
        torch.testing.assert_close(output[image], gated * gate[:, None])


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
@pytest.mark.parametrize('kind', RESPONSE_NORMS)
def test_half_precision_is_finite_and_near(kind, dtype):
    """Responses near 200 at 2048 sites, whose squares overflow float16, give what float64 gives, in the input's dtype,
    and under autocast too."""
    layer = randomise(build_response_norm(dict(type=kind), 8))
    sites = (make_sites(num_sites=2048) * 200).to(dtype)
    exact = layer(sites.double(), None, lambda pooled, conv: pooled * 0.01)
    layer = layer.float() if kind == 'BN' else layer.to(dtype)
    ours = layer(sites, None, lambda pooled, conv: pooled * 0.01)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=4e-2, atol=0.04 * exact.abs().max().item())
    with torch.autocast('cpu', dtype):
        ours = layer.float()(sites, None, lambda pooled, conv: pooled * 0.01)
    torch.testing.assert_close(ours.double(), exact, rtol=4e-2, atol=0.04 * exact.abs().max().item())


@pytest.mark.parametrize(
    'config, fuses',
    [
        (dict(type='GRN'), True),
        (dict(type='GRN', eps=1e-5), True),
        (dict(type='GRN', aggregation='L1'), False),
        (dict(type='GRN', normalization='1/sum'), False),
        (dict(type='GRN', residual=False), False),
        (dict(type='GRN', affine=False), False),
        (dict(type='LN'), False),
        (None, False),
    ],
)
def test_only_the_published_grn_is_fused(config, fuses):
    """The fused response MLP serves the published formula with any eps; everything else runs layer by layer."""
    block = ConvNeXtV2Block(4, response_norm=config)
    layers = block.pointwise_conv1, block.grn, block.pointwise_conv2
    assert fuse_mlp(Grid(8, 8, 4), *layers) == fuses and not fuse_mlp(Grid(8, 8, 4, kernels='layers'), *layers)


# Base with the classifier's norm and head; the paper's table 2 (e) gives 109 M to both gates and 89 M to GRN.
@pytest.mark.parametrize(
    'kind, millions', [('SE', 109), ('CBAM', 109), ('GRN', 89), ('LN', 89), ('BN', 89), ('LRN', 88.6)]
)
def test_parameters_are_the_published_count(kind, millions):
    """ConvNeXt-Base has the published number of parameters with each norm."""
    with torch.device('meta'):
        model = ConvNeXtV2('base', out_indices=(3,), response_norm=dict(type=kind))
        head = nn.Linear(1024, 1000)
    count = sum(one.numel() for module in (model, head) for one in module.parameters()) / 1e6
    assert abs(count - millions) < 0.6


def test_gates_are_decayed_and_grn_is_not():
    """Weight decay holds for the matrices of SE and CBAM, as for any other, and not for vectors and GRN."""
    for kind, decayed in (
        ('SE', ['mlp.0.weight', 'mlp.2.weight']),
        ('BN', []),
        ('GRN', []),
        ('LN', []),
        ('CBAM', ['mlp.0.weight', 'mlp.2.weight', 'spatial.weight']),
    ):
        names = [
            name
            for name, parameter in build_response_norm(dict(type=kind), 8).named_parameters()
            if not is_exempt_from_weight_decay(f'backbone.stages.0.0.grn.{name}', parameter)
        ]
        assert names == decayed
    assert is_exempt_from_weight_decay('stages.0.0.grn.gamma', torch.zeros(1, 8))  # of an official sparse encoder


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='GRN', aggregation='L3'), "aggregation='L3' of .*GRN: choose from .*'L2', 'L1', 'average'"),
        (dict(type='GRN', normalization='sum'), "normalization='sum' .*'x/sum', '1/sum', 'standardize'"),
        (dict(type='SE', squeeze=4), r"type='SE', ...\) does not know squeeze: choose from \['ratio'\]"),
    ],
)
def test_wrong_argument_is_refused(config, message):
    """The error names the argument, its value and what may be given."""
    with pytest.raises(ValueError, match=message):
        build_response_norm(config, 4)
