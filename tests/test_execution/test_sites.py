"""What the invariants beside this file leave open: gradients of the reference, drop path, and the mask's meaning."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

NEEDS_MINKOWSKI = pytest.mark.skipif(find_spec('MinkowskiEngine') is None, reason='run `make minkowski`')
EXECUTIONS = ('masked', 'packed', pytest.param('minkowski', marks=NEEDS_MINKOWSKI))
CELLS = torch.tensor([[0, 1, 5], [1, 2, 4]])  # of 2 x 3 cells
TINY = dict(depths=(1, 1, 1, 2), channels=(2, 3, 3, 4))


def make_images(height=64, width=96):
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def gradients(model, images, function):
    """Return maps, and the gradients of a random function of them for the images and every parameter."""
    images = images.clone().requires_grad_()
    maps = function(images)
    generator = torch.Generator().manual_seed(5)
    loss = sum((one * torch.randn(one.shape, generator=generator, dtype=one.dtype)).sum() for one in maps)
    return [*maps, *torch.autograd.grad(loss, [images, *model.parameters()])]


class SparseReference:
    """ConvNeXt V2 over the set of visible (row, column) sites of one image, written from the paper.

    Each convolution is a table of the visible neighbours of every site, looked up one site at a time; nothing is laid
    out as a map before the end.
    """

    def __init__(self, model, columns):
        self.weights, self.depths, self.columns = dict(model.named_parameters()), model.depths, columns

    def sites(self, cells, stride):
        side = 32 // stride
        return [
            (cell // self.columns * side + i, cell % self.columns * side + j)
            for cell in cells
            for i in range(side)
            for j in range(side)
        ]

    def affine(self, name):
        return self.weights[f'{name}.weight'], self.weights[f'{name}.bias']

    def norm(self, rows, name):
        weight, bias = self.affine(name)
        centred = rows - rows.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight + bias

    def strided(self, read, sites, size, name):
        weight, bias = self.affine(name)
        offsets = [(i, j) for i in range(size) for j in range(size)]
        return bias + sum(
            torch.stack([read(y * size + i, x * size + j) for y, x in sites]) @ weight[:, :, i, j].T for i, j in offsets
        )

    def depthwise(self, rows, sites, name):
        weight, bias = self.affine(name)
        number = {site: index for index, site in enumerate(sites)}
        outputs = []
        for y, x in sites:
            near = [
                (i, j, number[y + i - 3, x + j - 3])
                for i in range(7)
                for j in range(7)
                if (y + i - 3, x + j - 3) in number
            ]
            outputs.append(bias + sum(weight[:, 0, i, j] * rows[index] for i, j, index in near))
        return torch.stack(outputs)

    def block(self, rows, sites, name):
        branch = self.norm(self.depthwise(rows, sites, f'{name}.depthwise_conv'), f'{name}.norm')
        hidden = F.gelu(F.linear(branch, *self.affine(f'{name}.pointwise_conv1')))
        response = hidden.square().sum(0).sqrt()
        response = response / (response.sum() / len(response) + 1e-6)
        gamma, beta = self.weights[f'{name}.grn.gamma'], self.weights[f'{name}.grn.beta']
        hidden = gamma * (hidden * response) + beta + hidden
        return rows + F.linear(hidden, *self.affine(f'{name}.pointwise_conv2'))

    def __call__(self, image, cells):
        maps = []
        for stage, depth in enumerate(self.depths):
            stride, name = 4 * 2**stage, f'downsample_layers.{stage}'
            sites = self.sites(cells, stride)
            if stage == 0:
                rows = self.norm(self.strided(lambda y, x: image[:, y, x], sites, 4, f'{name}.0'), f'{name}.1')
            else:
                before = dict(zip(self.sites(cells, stride // 2), self.norm(rows, f'{name}.0')))
                rows = self.strided(lambda y, x: before[y, x], sites, 2, f'{name}.1')
            for block in range(depth):
                rows = self.block(rows, sites, f'stages.{stage}.{block}')
            features = rows.new_zeros(*(side // stride for side in image.shape[1:]), rows.shape[1])
            index = tuple(torch.tensor(sites).T)
            maps.append(features.index_put(index, self.norm(rows, f'norm{stage}')).permute(2, 0, 1))
        return maps


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_gradients_equal_sparse_reference(make_backbone, execution):
    """On a batch of non-square images maps and the gradients of images and every parameter equal a sparse network
    written from the paper."""
    model, images = make_backbone(TINY), make_images()

    def reference(images):
        walk = SparseReference(model, columns=3)
        return [torch.stack(one) for one in zip(*(walk(*pair) for pair in zip(images, CELLS.tolist())))]

    ours = gradients(model, images, lambda images: model(images, CELLS, execution))
    for one, other in zip(ours, gradients(model, images, reference), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('execution', EXECUTIONS)
@pytest.mark.parametrize('with_cp', (False, True))
def test_drop_path_draws_the_same(make_backbone, execution, with_cp):
    """With one seed, drop path drops the same images' branches in every execution, also when recomputed."""
    results = []
    for name, recompute in (('masked', False), (execution, with_cp)):
        model = make_backbone(drop_path_rate=0.6, with_cp=recompute).train()
        torch.manual_seed(6)
        results.append(gradients(model, make_images(), lambda images: model(images, CELLS, name)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    still = make_backbone().train()(make_images(), CELLS, execution)
    assert not torch.allclose(results[0][3], still[3])


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_visible_black_pixels_are_visible(make_backbone, execution):
    """A visible cell of zeros stays a visible site: it has features, and its neighbours see them."""
    model, images = make_backbone(), make_images()
    images[0, :, :32, 32:64] = 0  # cell 1, beside cell 0
    maps = model(images, CELLS, execution)
    without = model(images[:1], torch.tensor([[0, 5]]), execution)
    assert maps[0][0, :, :8, 8:16].abs().sum(0).min() > 0
    assert (maps[0][0, :, :8, :8] - without[0][0, :, :8, :8]).abs().max() > 1e-3
    walk = SparseReference(model, columns=3)
    torch.testing.assert_close(maps[3][0], walk(images[0], CELLS[0].tolist())[3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_averages_count_visible_sites(make_backbone, execution):
    """With gap_before_final_norm the mean runs over visible sites only: norm(mean) of the map before the norm."""
    arguments = dict(out_indices=(3,))
    vectors = make_backbone(gap_before_final_norm=True, **arguments)(make_images(), CELLS, execution)[0]
    model = make_backbone(**arguments)
    norm, model.norm3 = model.norm3, nn.Identity()
    features = model(make_images(), CELLS, execution)[0].flatten(2)  # (B, C, 6)
    means = torch.stack([one[:, cells].mean(1) for one, cells in zip(features, CELLS)])
    torch.testing.assert_close(vectors, norm(means), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('execution', ('dense', 'leaky', *EXECUTIONS))
def test_executions_own_no_state(make_backbone, execution):
    """A forward and backward leave keys, shapes and values of the state dict as they were."""
    model = make_backbone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    maps = model(make_images(), None if execution == 'dense' else CELLS, execution)
    sum(one.sum() for one in maps).backward()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
