"""FCMAE neither reads nor predicts pixels without data: their values change nothing, and loss and targets are those of
a loop over valid pixels."""

import math

import numpy as np
import pytest
import torch
from small_models import NARROW, make_fcmae

from mmconvnextv2.pretrain import FCMAE, FCMAEMaskGenerator

CELLS = torch.tensor([[0, 2, 3], [1, 3, 5]])  # of 2 x 3; cell 3 of the second image has no valid pixel


def make(execution='packed'):
    model = make_fcmae(execution=execution)
    model.backbone.valid_sites = True
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def valid():
    keep = torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(3)) > 0.2
    keep[0, :32, 32:64] = False  # a masked cell
    keep[1, 32:, :32] = False  # one that fills the list of visible cells
    return keep


def run(model, images):
    loss = model.masked_loss(images, CELLS)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_executions_agree_and_values_do_not_matter(images, valid):
    """Packed and masked give the same loss and gradients, which are finite, with NaN at invalid pixels."""
    marked = torch.where(valid.unsqueeze(1), images, math.nan)
    packed = run(make(), marked)
    assert all(one.isfinite().all() for one in packed)
    torch.testing.assert_close(packed, run(make('masked'), marked), rtol=1e-9, atol=1e-9)


def test_loss_by_a_loop(images, valid):
    """The loss is the mean squared error over valid pixels of masked cells, against pixels normalised by the mean and
    unbiased variance of the valid pixels of their cell."""
    model, marked = make(), torch.where(valid.unsqueeze(1), images, math.nan)
    decoded = model.neck(model.backbone(marked, CELLS, 'packed', valid), CELLS, valid)
    errors = []
    for image, keep, maps, visible in zip(images, valid, decoded, CELLS.tolist()):
        for cell in set(range(6)) - set(visible):
            row, column = divmod(cell, 3)
            part = (slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32))
            pixels = image.permute(1, 2, 0)[part][keep[part]]
            if len(pixels):
                predicted = model.head.pred(maps[:, row, column]).view(32, 32, 3)[keep[part]]
                errors.append((predicted - (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()).square().flatten())
    torch.testing.assert_close(model.masked_loss(marked, CELLS), torch.cat(errors).mean(), rtol=1e-10, atol=1e-10)


def test_everything_valid_is_the_plain_loss(images):
    """Without an invalid pixel, loss and gradients are those without the switch."""
    torch.testing.assert_close(run(make(), images), run(make_fcmae(), images), rtol=1e-10, atol=1e-10)


def test_nothing_valid(images):
    """A batch without a valid pixel has the loss 0, and finite gradients and reconstructions."""
    found = run(make(), torch.full_like(images, math.nan))
    assert found[0] == 0 and all(one.isfinite().all() for one in found)
    half = torch.where(torch.arange(2).view(2, 1, 1, 1) == 0, images, math.nan)
    assert all(one.isfinite().all() for one in make().reconstruct(half, CELLS).values())


@pytest.mark.parametrize('ratio', (0.6, 0.75, 0.9))
def test_visible_cells_are_valid(ratio):
    """Of v cells with a valid pixel, floor(v (1 - r)) are visible, at least one; the list always has K entries, which
    invalid cells fill. All valid gives the same list as without a map."""
    generator, count = FCMAEMaskGenerator(ratio), math.floor(36 * (1 - ratio) + 1e-9)
    for valid_cells in range(37):
        flags = np.zeros(36, bool)
        flags[np.random.default_rng(valid_cells).permutation(36)[:valid_cells]] = True
        valid = np.zeros((192, 192), bool)
        valid[::32, ::32] = flags.reshape(6, 6)
        np.random.seed(0)
        cells = generator(dict(img=np.zeros((192, 192, 3)), valid_pixels=valid))['visible_cells']
        assert len(set(cells)) == count and (np.diff(cells) > 0).all()
        assert flags[cells].sum() == min(max(math.floor(valid_cells * (1 - ratio) + 1e-9), 1), valid_cells)
    np.random.seed(0)
    assert np.array_equal(generator(dict(img=np.zeros((192, 192, 3))))['visible_cells'], cells)


def test_decoders_that_count_all_cells_are_refused():
    """A decoder that does not take valid pixels is refused when the model is built."""
    with pytest.raises(ValueError, match='choose FCMAEDecoder'):
        FCMAE(
            backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False, valid_sites=True),
            neck=dict(type='FCMAETransformerDecoder', channels=32),
            head=dict(type='FCMAEHead'),
        )


@pytest.mark.parametrize('cell', [8, 32])
def test_each_ratio_of_a_range_holds_among_valid_cells(cell):
    """Whichever ratio of a range a batch has, its share of the valid cells is visible, to one cell; at least one is."""
    random = np.random.default_rng(0)
    side = 12 * cell
    generator = FCMAEMaskGenerator((0.3, 0.9), num_ratios=5, cell=cell)
    for keep in (1, 5, 40, 100, 144):
        has_valid = np.zeros(144, bool)
        has_valid[random.permutation(144)[:keep]] = True
        valid = has_valid.reshape(12, 12).repeat(cell, 0).repeat(cell, 1)
        found = generator.transform(dict(img=np.zeros((side, side, 3)), valid_pixels=valid))
        order = found['cell_order']
        assert sorted(order) == list(range(144))
        for ratio in generator.ratios:
            shown = has_valid[order[: math.floor(144 * (1 - ratio) + 1e-9)]].sum()
            assert 1 <= shown and abs(shown - keep * (1 - ratio)) <= 1
