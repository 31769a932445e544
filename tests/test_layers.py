"""GRN and DropPath are the published formulas, per image, and safe in half precision."""
import numpy as np
import pytest
import torch

from mmconvnextv2.layers import GRN, DropPath, LayerNorm, build_response_norm, response_scale


def make_grn(channels, dtype=torch.float64):
    layer = GRN(channels).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return layer


def grn_by_loops(sites, gamma, beta, counted):
    """Algorithm 1 of the paper in numpy, image by image and channel by channel."""
    output = np.empty_like(sites)
    for image in range(len(sites)):
        rows = [row for row, counts in zip(sites[image], counted[image]) if counts]
        norms = [np.sqrt(sum(row[channel]**2 for row in rows)) for channel in range(sites.shape[-1])]
        mean = sum(norms) / len(norms)
        for channel, norm in enumerate(norms):
            values = sites[image, :, channel]
            output[image, :, channel] = gamma[channel] * values * norm / (mean + 1e-6) + beta[channel] + values
    return output


@pytest.mark.parametrize('masked', (False, True))
def test_grn_is_the_formula(masked):
    """Values equal Algorithm 1 written with loops, with all sites counted and with some."""
    layer, generator = make_grn(5), torch.Generator().manual_seed(1)
    sites = torch.randn(3, 7, 5, dtype=torch.float64, generator=generator)
    counted = torch.rand(3, 7, 1, generator=generator) < (0.5 if masked else 2.)
    counted[:, 0] = True
    expected = grn_by_loops(sites.numpy(), *(one.detach().numpy() for one in (layer.gamma, layer.beta)),
                            counted[..., 0].numpy())
    ours = layer(sites, counted if masked else None)
    torch.testing.assert_close(ours.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_grn_ignores_uncounted_values():
    """NaN at a site that does not count changes no other site."""
    layer, sites = make_grn(4), torch.randn(2, 6, 4, dtype=torch.float64)
    counted = torch.ones(2, 6, 1, dtype=torch.bool)
    counted[:, 2] = False
    spoiled = sites.clone()
    spoiled[:, 2] = torch.nan
    others = [0, 1, 3, 4, 5]
    assert torch.equal(layer(spoiled, counted)[:, others], layer(sites, counted)[:, others])


@pytest.mark.parametrize('masked', (False, True))
def test_grn_gradients(masked):
    """Gradients of sites, gamma and beta equal finite differences."""
    layer, sites = make_grn(3), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
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
    layer, exact = make_grn(8, dtype), make_grn(8)
    exact.load_state_dict(layer.state_dict())
    ours = layer(sites)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact(sites.double()), rtol=tolerance, atol=4.)


def test_drop_path_drops_whole_images():
    """Each image's branch is all zero or scaled by 1 / keep; about the given share is dropped; none in evaluation."""
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.rand(4000, 3, 2) + 1
    output = layer(branch)
    dropped = (output == 0).flatten(1).all(1)
    torch.testing.assert_close(output[~dropped], branch[~dropped] / 0.75)
    assert abs(dropped.float().mean().item() - 0.25) < 0.03
    assert torch.equal(layer.eval()(branch), branch)


def test_layer_norm_of_a_map_is_per_site():
    """A map is normalised over channels at each site, by numpy."""
    layer, features = LayerNorm(4).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    values = features.numpy()
    values = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    weight, bias = (one.detach().numpy()[:, None, None] for one in (layer.weight, layer.bias))
    torch.testing.assert_close(layer.forward_map(features).detach(), torch.from_numpy(values * weight + bias))


@pytest.mark.parametrize('config', [dict(type='BN'), dict(eps=1e-6)])
def test_unknown_response_norm_is_refused(config):
    """The error names the argument and what may be chosen."""
    with pytest.raises(ValueError, match=r'response_norm=.*choose from .*GRN'):
        build_response_norm(config, 4)
