"""Cells of 8, 16 and 32 pixels: every execution computes the function that a site-by-site reference computes."""

import math
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from sparse_reference import convolve_patches, normalise, run_block
from torch import nn

from mmconvnextv2 import ConvNeXtV2

needs_minkowski = pytest.mark.skipif(find_spec('MinkowskiEngine') is None, reason='run `make minkowski`')
EXECUTIONS = ('masked', 'packed', pytest.param('minkowski', marks=needs_minkowski))
SMALL = dict(depths=(1, 1, 1, 1), channels=(2, 3, 3, 4))
CELLS = [[0, 2, 5], [1, 3, 4]]  # of 2 x 3
STEMS = {
    'conv-8': dict(type='ConvStem', stride=1),
    'conv-16': dict(type='ConvStem', stride=2),
    'patch-8': dict(type='PatchStem', stride=1),
    'patch-16': dict(type='PatchStem', stride=2),
}


def make(stem):
    torch.manual_seed(0)
    model = ConvNeXtV2(SMALL, in_channels=2, stem=stem, out_norm=False).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def make_images(cell):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 2 * cell, 3 * cell, dtype=torch.float64, generator=generator)


def run_stem(weights, stem, pixels):
    """The stem on a dictionary of visible pixels."""
    stride = stem['stride']
    if stem['type'] == 'PatchStem':
        return normalise(
            weights, 'downsample_layers.0.1', convolve_patches(weights, 'downsample_layers.0.0', pixels, stride)
        )
    kernel, bias = weights['downsample_layers.0.0.weight'], weights['downsample_layers.0.0.bias']
    features = {}
    for y, x in pixels:
        near = [(i, j) for i in range(3) for j in range(3) if (y + i - 1, x + j - 1) in pixels]
        features[y, x] = bias + sum(kernel[:, :, i, j] @ pixels[y + i - 1, x + j - 1] for i, j in near)
    features = {site: F.gelu(value) for site, value in normalise(weights, 'downsample_layers.0.1', features).items()}
    kernel, bias = weights['downsample_layers.0.3.weight'][:, 0], weights['downsample_layers.0.3.bias']
    sites = {}
    for y, x in dict.fromkeys((y // stride, x // stride) for y, x in features):
        offsets = [(i, j) for i in range(stride) for j in range(stride)]
        sites[y, x] = bias + sum(kernel[:, i, j] * features[stride * y + i, stride * x + j] for i, j in offsets)
    return normalise(weights, 'downsample_layers.0.4', sites)


def reference(model, stem, images):
    """The last map, from dictionaries of visible sites."""
    weights, cell, maps = dict(model.named_parameters()), 8 * stem['stride'], []
    for image, visible in zip(images, CELLS):
        height, width = image.shape[1:]
        sites = {
            (y, x): image[:, y, x]
            for y in range(height)
            for x in range(width)
            if y // cell * (width // cell) + x // cell in visible
        }
        for stage in range(4):
            if stage == 0:
                sites = run_stem(weights, stem, sites)
            else:
                sites = normalise(weights, f'downsample_layers.{stage}.0', sites)
                sites = convolve_patches(weights, f'downsample_layers.{stage}.1', sites, 2)
            sites = run_block(weights, f'stages.{stage}.0', sites)
        empty = torch.zeros(4, dtype=torch.float64)
        rows = [torch.stack([sites.get((y, x), empty) for x in range(3)], 1) for y in range(2)]
        maps.append(torch.stack(rows, 1))
    return torch.stack(maps)


def with_gradients(model, images, run):
    images = images.clone().requires_grad_()
    features = run(images)
    weights = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(2))
    return [features, *torch.autograd.grad((features * weights).sum(), [images, *model.parameters()])]


@pytest.fixture(scope='module', params=STEMS)
def case(request):
    """A model, its images, and the values and gradients of the reference, which takes seconds."""
    stem = STEMS[request.param]
    model = make(stem)
    images = make_images(model.cell)
    assert model.cell == int(request.param.split('-')[1])
    return model, images, with_gradients(model, images, lambda one: reference(model, stem, one))


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_cells_equal_the_reference(case, execution):
    """The last map has one site per cell, and values and gradients of pixels and weights are the reference's."""
    model, images, expected = case
    found = with_gradients(model, images, lambda one: model(one, torch.tensor(CELLS), execution)[-1])
    assert found[0].shape == (2, 4, 2, 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert all(one.any() for one in expected)


@pytest.mark.parametrize('execution', EXECUTIONS)
@pytest.mark.parametrize('name', STEMS)
def test_masked_pixels_and_whole_images(name, execution):
    """NaN in masked pixels changes nothing, also where a 3x3 kernel touches them; with all cells visible the maps are
    those of the whole image."""
    model = make(STEMS[name])
    images, cell = make_images(model.cell), model.cell
    visible = torch.zeros(2, 1, 2 * cell, 3 * cell, dtype=torch.bool)
    for image, cells in enumerate(CELLS):
        for number in cells:
            y, x = number // 3 * cell, number % 3 * cell
            visible[image, :, y : y + cell, x : x + cell] = True
    spoilt = torch.where(visible, images, math.nan)
    for one, other in zip(model(spoilt, torch.tensor(CELLS), execution), model(images, torch.tensor(CELLS), execution)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    everything = torch.arange(6).expand(2, 6)
    for one, other in zip(model(images, everything, execution), model(images)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_sides_off_the_cells_are_refused():
    """The error names the model's cell and a size that fits it."""
    with pytest.raises(ValueError, match='60x48 pixels: .*multiples of 16; resize or crop to 48x48'):
        make(STEMS['conv-16'])(torch.zeros(2, 2, 60, 48, dtype=torch.float64), torch.tensor(CELLS))
