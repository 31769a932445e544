"""Every execution that masks computes the same function of the visible sites, and of nothing else."""

import math
from importlib.util import find_spec

import pytest
import torch
from sparse_reference import sparse_reference

from mmconvnextv2.models.execution import mask_to_visible_cells

needs_minkowski = pytest.mark.skipif(find_spec('MinkowskiEngine') is None, reason='run `make minkowski`')
EXECUTIONS = ('masked', 'packed', pytest.param('minkowski', marks=needs_minkowski))
LISTS = [[0, 2, 5], [1, 3, 4]]  # of 2 x 3 cells
CELLS = torch.tensor(LISTS)
SMALL = dict(depths=(1, 1, 1, 2), channels=(2, 3, 3, 4))  # the reference runs site by site


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def values_and_gradients(model, images, *args, run=None):
    """Return all maps, and the gradients of a random function of them for the images and every parameter.

    ``run`` computes the maps; by default the model does.
    """
    images = images.clone().requires_grad_()
    outputs = (run or model)(images, *args)
    generator = torch.Generator().manual_seed(2)
    loss = sum((one * torch.randn(one.shape, generator=generator, dtype=one.dtype)).sum() for one in outputs)
    return list(outputs) + list(torch.autograd.grad(loss, [images, *model.parameters()]))


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def masked_pixels(images, cells):
    """Return a bool mask (B, 1, H, W), True at masked pixels, by a plain loop."""
    masked = torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.bool)
    for image, visible in enumerate(cells.tolist()):
        for cell in visible:
            row, column = divmod(cell, images.shape[-1] // 32)
            masked[image, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = False
    return masked


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_all_visible_is_dense(make_backbone, images, execution):
    """With every cell visible, values and gradients are those of the dense forward."""
    model = make_backbone()
    everything = torch.arange(6).expand(2, 6)
    assert_same(values_and_gradients(model, images, everything, execution), values_and_gradients(model, images))


@pytest.mark.parametrize('execution', EXECUTIONS)
@pytest.mark.parametrize('value', (7.0, math.nan))
def test_masked_pixels_do_not_matter(make_backbone, images, execution, value):
    """Changing masked pixels, to NaN too, changes no value and no gradient, and masked cells come back zero."""
    model = make_backbone()
    masked = masked_pixels(images, CELLS)
    expected = values_and_gradients(model, images, CELLS, execution)
    changed = torch.where(masked, torch.full_like(images, value), images)
    assert_same(values_and_gradients(model, changed, CELLS, execution), expected)
    for output in expected[:4]:
        stride = images.shape[-1] // output.shape[-1]
        assert not output.masked_select(masked[..., ::stride, ::stride]).any()


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_batch_equals_single_images(make_backbone, images, execution):
    """A batch gives what its images give one at a time: statistics are per image."""
    model = make_backbone()
    together = model(images, CELLS, execution)
    for image in range(2):
        alone = model(images[image : image + 1], CELLS[image : image + 1], execution)
        assert_same([output[image : image + 1] for output in together], alone)


@pytest.mark.parametrize('with_cp', (False, True))
def test_executions_agree(make_backbone, images, with_cp):
    """Masked and packed agree in values and gradients, also when activations are computed again in backward."""
    expected = values_and_gradients(make_backbone(), images, CELLS, 'masked')
    assert_same(values_and_gradients(make_backbone(with_cp=with_cp), images, CELLS, 'packed'), expected)


def test_leaky_leaks(make_backbone, images):
    """The ablation without sparse convolution differs from the masked reference, as its name says."""
    model = make_backbone()
    assert (model(images, CELLS, 'leaky')[0] - model(images, CELLS, 'masked')[0]).abs().max() > 1e-3


@pytest.fixture(scope='module')
def expected(make_backbone, images):
    """The maps and gradients of the sparse reference, which takes seconds."""
    model = make_backbone(SMALL)
    weights = dict(model.named_parameters())
    return values_and_gradients(model, images, run=lambda one: sparse_reference(weights, model.depths, one, LISTS))


@pytest.mark.parametrize('execution', EXECUTIONS)
def test_equals_sparse_reference(make_backbone, images, expected, execution):
    """On a batch of non-square images, maps and the gradients of images and every parameter equal those of a slow
    sparse network written from the paper, a dictionary of visible sites."""
    ours = values_and_gradients(make_backbone(SMALL), images, CELLS, execution)
    assert_same(ours, expected)
    assert all(one.any() for one in ours)


def test_mask_to_visible_cells():
    """A bool mask becomes ascending cell indices; images with unequal numbers of visible cells are refused."""
    mask = torch.tensor([[[True, False, True], [False, False, True]], [[False, True, False], [True, True, False]]])
    assert torch.equal(mask_to_visible_cells(mask), CELLS)
    mask[0] = True
    with pytest.raises(ValueError, match='same number'):
        mask_to_visible_cells(mask)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(execution='fast'), 'unknown'),
        (dict(execution='packed'), 'needs visible_cells'),
        (dict(visible_cells=CELLS, execution='dense'), 'cannot use'),
        (dict(visible_cells=CELLS.int()), 'torch.int64'),
        (dict(visible_cells=torch.zeros(2, 7, dtype=torch.long)), '1 to 6'),
    ],
)
def test_refuses_bad_arguments(make_backbone, images, arguments, message):
    """A wrong execution or wrong visible cells raise an error that names what is allowed."""
    with pytest.raises(ValueError, match=message):
        make_backbone()(images, **arguments)


def test_refuses_images_off_the_cell_grid(make_backbone):
    """A masked image whose sides are not multiples of 32 is refused with its size."""
    with pytest.raises(ValueError, match='64x80'):
        make_backbone()(torch.zeros(2, 3, 64, 80, dtype=torch.float64), CELLS)
