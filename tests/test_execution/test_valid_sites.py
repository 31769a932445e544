"""With valid sites, pixels without data change nothing: an image has the same maps and gradients alone and in a frame
of padding, and the valid sites of every stage are those that have a valid pixel."""

import math

import pytest
import torch
import torch.nn.functional as F
from sparse_reference import sparse_reference
from test_invariants import CELLS, LISTS, SMALL, assert_same, values_and_gradients
from test_norms_in_executions import NORMS

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.ops import reductions
from mmconvnextv2.ops.valid_sites import any_valid

# An image of 64 x 96 pixels on its own; right and below of it there is padding, or all around it
FRAMES = dict(padded=(0, 0, 96, 160), around=(32, 64, 128, 192))
STEM = dict(type='ConvStem', stride=2)


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def valid():
    """Every tenth pixel invalid, a cell without a valid pixel, and one whose only valid pixel is its last."""
    keep = torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(3)) > 0.1
    keep[0, :32, 32:64] = False
    keep[1, 32:, :32] = False
    keep[1, 63, 31] = True
    return keep


def framed(images, value, top, left, height, width):
    """Return images inside of a larger frame of one value."""
    _, _, rows, columns = images.shape
    return F.pad(images, (left, width - left - columns, top, height - top - rows), value=value)


def cut_maps(maps, images, top, left):
    """Return the part of each map that shows the images, having checked that the rest is zero."""
    parts = []
    for one, stride in zip(maps, (4, 8, 16, 32)):
        rows, columns = (side // stride for side in images.shape[2:])
        parts.append(one[:, :, top // stride : top // stride + rows, left // stride : left // stride + columns])
        assert one.count_nonzero() == parts[-1].count_nonzero()
    return parts


def run_framed(model, images, top, left, height, width, value=math.nan):
    """Maps and gradients of images in a frame."""

    def run(images):
        return cut_maps(model(framed(images, value, top, left, height, width)), images, top, left)

    return values_and_gradients(model, images, run=run)


@pytest.mark.parametrize('frame', FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize('settings', (dict(), dict(with_cp=True), dict(kernels='layers'), dict(kernels='torch')))
def test_frame_changes_nothing(make_backbone, images, frame, settings):
    """In a frame of NaN, maps at the image's sites and all gradients are those of the image alone without the switch,
    and all other sites are zero."""
    expected = values_and_gradients(make_backbone(), images)
    model = make_backbone(valid_sites=True, **settings)
    torch.testing.assert_close(run_framed(model, images, *frame), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('norm', NORMS, ids=lambda norm: '-'.join(map(str, (norm or {0: 'V1'}).values())))
@pytest.mark.parametrize('stem', (None, STEM, dict(STEM, stride=1)))
def test_frame_of_every_model(make_backbone, images, norm, stem):
    """The same for all response norms and stems."""
    if stem == dict(STEM, stride=1) and norm != NORMS[0]:
        pytest.skip('one norm is enough for the second stride')
    settings = dict(response_norm=norm, layer_scale_init_value=0.0 if norm else 1.0, stem=stem)
    if stem:  # strides are not 4 to 32: compare pooled vectors, and gradients
        settings |= dict(gap_before_final_norm=True)
    expected = values_and_gradients(make_backbone(**settings), images)
    model = make_backbone(valid_sites=True, **settings)

    def run(images):
        maps = model(framed(images, math.nan, *FRAMES['around']))
        return maps if stem else cut_maps(maps, images, 32, 64)

    torch.testing.assert_close(values_and_gradients(model, images, run=run), expected, rtol=1e-10, atol=1e-10)


def test_without_switch_padding_counts(make_backbone, images):
    """Without the switch, zero padding changes the maps: what this file compares is not trivial."""
    model = make_backbone()
    alone, padded = model(images), model(framed(images, 0.0, *FRAMES['padded']))
    assert (alone[0] - padded[0][:, :, :16, :24]).abs().max() > 1e-2


@pytest.mark.parametrize('sides', [(64, 96), (50, 70), (33, 127)])
def test_alone_and_in_a_batch(make_backbone, sides):
    """An image that is padded to a multiple of 32 alone has the same maps in a batch of larger images."""
    model = make_backbone(valid_sites=True)
    image = torch.randn(1, 3, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    least = [-(-side // 32) * 32 for side in sides]
    alone = model(framed(image, math.nan, 0, 0, *least))
    larger = torch.randn(1, 3, 160, 192, dtype=torch.float64)
    batch = model(torch.cat([larger, framed(image, math.nan, 0, 0, 160, 192)]))
    for one, other in zip(batch, alone):
        _, _, rows, columns = other.shape
        torch.testing.assert_close(one[1:, :, :rows, :columns], other, rtol=1e-10, atol=1e-10)
        assert not one[1, :, rows:].any() and not one[1, :, :, columns:].any()


@pytest.mark.parametrize('settings', (dict(), dict(kernels='layers')))
def test_everything_valid_is_dense(make_backbone, images, settings):
    """With every pixel valid, values and gradients are those without the switch."""
    expected = values_and_gradients(make_backbone(**settings), images)
    assert_same(values_and_gradients(make_backbone(valid_sites=True, **settings), images), expected)


@pytest.mark.parametrize('cells', (None, CELLS))
def test_equals_sparse_reference(make_backbone, images, valid, cells):
    """With scattered invalid pixels, dense or on visible cells, values and gradients equal those of a slow network that
    has no entry for an invalid pixel or a site without a valid one."""
    model, shown = make_backbone(SMALL), [list(range(6))] * 2 if cells is None else LISTS
    weights = dict(model.named_parameters())
    expected = values_and_gradients(
        model, images, run=lambda one: sparse_reference(weights, model.depths, one, shown, valid)
    )
    for execution in ('dense',) if cells is None else ('masked', 'packed'):
        ours = values_and_gradients(model, images, run=lambda one: model(one, cells, execution, valid))
        assert_same(ours, expected)


@pytest.mark.parametrize('cells', (None, CELLS))
@pytest.mark.parametrize('value', (7.0, math.nan, math.inf))
def test_invalid_pixels_do_not_matter(make_backbone, images, valid, cells, value):
    """Values of invalid pixels, NaN and infinity too, change no map and no gradient."""
    model = make_backbone()
    expected = values_and_gradients(model, images, cells, None, valid)
    changed = torch.where(valid.unsqueeze(1), images, torch.full_like(images, value))
    assert_same(values_and_gradients(model, changed, cells, None, valid), expected)


def test_any_channel_marks(make_backbone, images):
    """A pixel is invalid if one of its channels is NaN."""
    model, marked = make_backbone(valid_sites=True), images.clone()
    marked[:, 1, 40:, :] = math.nan
    cleared = images.clone()
    cleared[:, :, 40:, :] = math.nan
    assert_same(model(marked), model(cleared))


def test_valid_sites_by_a_plain_loop(valid):
    """A site is valid if any of its pixels is, at each stride directly and by halving."""
    halved = valid
    for stride in (2, 4, 8, 16, 32):
        halved, expected = any_valid(halved, 2), torch.zeros(2, 64 // stride, 96 // stride, dtype=torch.bool)
        for image, row, column in expected.nonzero(as_tuple=False).tolist() or torch.ones_like(expected).nonzero():
            rows, columns = row * stride, column * stride
            expected[image, row, column] = valid[image, rows : rows + stride, columns : columns + stride].any()
        assert torch.equal(halved, expected) and torch.equal(any_valid(valid, stride), expected)
    assert halved.tolist() == [[[True, False, True], [True] * 3], [[True] * 3, [True] * 3]]


@pytest.mark.parametrize('norm', NORMS, ids=lambda norm: '-'.join(map(str, (norm or {0: 'V1'}).values())))
def test_nothing_valid(make_backbone, images, norm):
    """An image without a valid pixel gives zeros and finite gradients, and changes no other image of its batch."""
    settings = dict(response_norm=norm, layer_scale_init_value=0.0 if norm else 1.0, valid_sites=True)
    empty = torch.cat([images[:1], torch.full_like(images[:1], math.nan)])
    model, rest = make_backbone(**settings), []

    def run(images):
        maps = model(torch.cat([images, empty[1:]]))
        rest.extend(one[1] for one in maps)
        return [one[:1] for one in maps]

    found = values_and_gradients(model, images[:1], run=run)
    assert_same(found, values_and_gradients(make_backbone(**settings), images[:1]))
    assert not any(one.any() for one in rest)
    [vector] = make_backbone(out_indices=(3,), gap_before_final_norm=True, **settings)(empty[1:])
    assert vector.isfinite().all()


@pytest.mark.parametrize('cells', (None, CELLS))
def test_compiled(make_backbone, images, valid, cells):
    """A graph without breaks computes the same as eager mode."""
    model = make_backbone(valid_sites=True, with_cp=True)
    marked = torch.where(valid.unsqueeze(1), images, math.nan)
    expected = values_and_gradients(model, marked, cells)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    torch._dynamo.reset()
    assert_same(values_and_gradients(model, marked, cells, run=lambda *one: compiled(*one)), expected)


def test_half_precision(images):
    """Under autocast, and as a bfloat16 model, a frame changes maps by less than precision does."""
    torch.manual_seed(0)
    model = ConvNeXtV2(SMALL, valid_sites=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = images.float()
    exact = model(images)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.float32), torch.no_grad():
            alone, padded = model(images.to(dtype)), model(framed(images, math.nan, 0, 0, 96, 160).to(dtype))
        for one, other, true in zip(cut_maps(padded, images, 0, 0), alone, exact):
            assert (one.float() - other.float()).abs().max() <= (other.float() - true).abs().max() + 1e-2


@pytest.mark.parametrize('dtype', (torch.float64, torch.float32, torch.float16, torch.bfloat16))
def test_selection_by_bits(dtype):
    """The selection by bits gives what ``where`` gives, also of NaN and -0.0, in both modes of differentiation."""
    values = torch.tensor([math.nan, math.inf, -0.0, 1.5, -2.0, 3.0]).to(dtype).view(1, 6, 1).expand(2, 6, 4).clone()
    mask = torch.rand(2, 6, 1, generator=torch.Generator().manual_seed(0)) > 0.5
    expected = torch.where(mask, values, torch.zeros((), dtype=dtype))
    torch.testing.assert_close(reductions.fill_masked(values, mask), expected, rtol=0, atol=0, equal_nan=True)
    if dtype == torch.float64:
        sites = torch.randn(2, 6, 4, dtype=dtype, requires_grad=True)
        torch.autograd.gradcheck(lambda one: reductions.fill_masked(one, mask), sites, check_forward_ad=True)
        torch.autograd.gradgradcheck(lambda one: reductions.fill_masked(one, mask) ** 2, sites)
        batched = torch.func.vmap(lambda one: reductions.fill_masked(one, mask))(torch.stack([sites, 2 * sites]))
        torch.testing.assert_close(batched[1], 2 * reductions.fill_masked(sites, mask))


@pytest.mark.parametrize(
    'given',
    [torch.ones(2, 64, 64, dtype=torch.bool), torch.ones(2, 64, 96), torch.ones(2, 1, 64, 96, dtype=torch.bool)],
)
def test_wrong_map_is_refused(make_backbone, images, given):
    """A map of another size or dtype is refused, with the shape that is expected."""
    with pytest.raises(ValueError, match=r'expected torch.bool of shape \(2, 64, 96\)'):
        make_backbone()(images, valid_pixels=given)


def test_what_cannot_be_masked_is_refused(make_backbone, images):
    """A stem that does not keep the size, which cannot give an image the same maps alone and padded, is refused."""
    model = make_backbone(stem=dict(STEM, padding='valid'), valid_sites=True)
    with pytest.raises(ValueError, match="set stem.padding='same'"):
        model(images)
