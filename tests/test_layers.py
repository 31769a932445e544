"""DropPath, LayerNorm and means over sites are what they say; the response norms have tests of their own."""

import numpy as np
import pytest
import torch

from mmconvnextv2.models.layers import DropPath, LayerNorm
from mmconvnextv2.ops.reductions import mean_over_sites


def test_drop_path_drops_whole_images():
    """Each image's branch is all zero or scaled by 1 / keep; about the given share is dropped; none in evaluation."""
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.rand(4000, 3, 2) + 1
    output = layer(branch)
    dropped = (output == 0).flatten(1).all(1)
    torch.testing.assert_close(output[~dropped], branch[~dropped] / 0.75)
    assert abs(dropped.float().mean().item() - 0.25) < 0.03
    assert torch.equal(layer.eval()(branch), branch)


def test_layer_norm_is_per_site():
    """Sites are normalised over channels, each by itself, by numpy."""
    layer, features = LayerNorm(4).double(), torch.randn(2, 15, 4, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    values = features.numpy()
    values = (values - values.mean(2, keepdims=True)) / np.sqrt(values.var(2, keepdims=True) + 1e-6)
    weight, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(features).detach(), torch.from_numpy(values * weight + bias))


@pytest.mark.parametrize('dtype', (torch.float64, torch.float16))
def test_mean_counts_visible_sites(dtype):
    """The mean of each image is over its own counted sites, whatever stands at others, and does not overflow."""
    sites = (torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) * 100 + 300).to(dtype)
    counted = torch.zeros(2, 300, 1, dtype=torch.bool)
    counted[0, :250], counted[1, 40:290] = True, True
    expected = torch.stack([sites[0, :250].double().mean(0), sites[1, 40:290].double().mean(0)])[:, None]
    ours = mean_over_sites(torch.where(counted, sites, torch.nan), counted)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=1e-12 if dtype == torch.float64 else 1e-3, atol=0)
    assert torch.equal(mean_over_sites(sites), sites.mean(1, keepdim=True))
