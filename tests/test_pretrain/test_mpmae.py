"""MP-MAE: the losses are those of the formulas, and what is missing takes no part."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fcmae_runs import in_processes
from mmpretrain.structures import DataSample
from mpmae_reference import loss_of, total_of
from small_models import NARROW
from torch import nn

from mmconvnextv2.pretrain import MPMAE, FCMAEDataPreprocessor

CELL = 8
CELLS = np.array([[0, 2], [1, 5]])  # of 2 x 3 cells
MASKED = [[1, 3, 4, 5], [0, 2, 3, 4]]
KINDS = dict(
    bands=('pixel values', dict(type='PixelValues', channels=2, source='inputs', norm_cell=True)),
    elevation=('pixel values', dict(type='PixelValues', channels=1)),
    radar=('pixel values', dict(type='PixelValues', channels=3, norm_cell=True)),
    cover=('pixel classes', dict(type='PixelClasses', num_classes=4)),
    climate=('image values', dict(type='ImageValues', channels=3)),
    biome=('image classes', dict(type='ImageClasses', num_classes=5)),
)
TARGETS = {name: config for name, (_, config) in KINDS.items()}
MISSING = ('nothing', 'some values', 'one sample', 'everything')


def make(stride=1, **kwargs):
    """A float64 model in which every parameter is random."""
    torch.manual_seed(0)
    kwargs = dict(head=dict(type='MultiTargetHead', targets=TARGETS)) | kwargs
    model = MPMAE(
        backbone=dict(
            type='ConvNeXtV2',
            arch=NARROW,
            in_channels=2,
            stem=dict(type='ConvStem', stride=stride),
            out_indices=(3,),
            out_norm=False,
        ),
        neck=dict(type='FCMAEDecoder', channels=12),
        **kwargs,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def make_batch(missing='nothing', cell=CELL, batch=2, seed=1):
    """Images, samples and targets; NaN and -1 mark what is missing."""
    generator = torch.Generator().manual_seed(seed)
    size = (2 * cell, 3 * cell)

    def values(*shape):
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    def classes(count, *shape):
        return torch.randint(0, count, (batch, *shape), generator=generator)

    images = values(2, *size)
    targets = dict(
        elevation=values(1, *size), radar=values(3, *size), cover=classes(4, *size), climate=values(3), biome=classes(5)
    )
    if missing == 'some values':
        images[:, 0, 3:12, 2:9] = math.nan
        targets['elevation'][:, :, ::3] = math.nan
        targets['radar'][0, 1] = math.nan
        targets['radar'][1, :, :cell, :cell] = math.nan  # a whole masked cell
        targets['radar'][1, :, cell : 2 * cell, :cell] = math.nan  # all but one value of the next
        targets['radar'][1, 0, cell, 0] = 1.5
        targets['cover'][:, 5:] = -1
        targets['climate'][0, 1] = math.nan
        targets['biome'][1] = -1
    elif missing != 'nothing':
        gone = slice(0, 1) if missing == 'one sample' else slice(None)
        for name, target in targets.items():
            target[gone] = -1 if TARGETS[name]['type'].endswith('Classes') else math.nan
    samples = [DataSample(metainfo=dict(visible_cells=cells)) for cells in np.resize(CELLS, (batch, 2))]
    return images, samples, targets


def predictions(model, images):
    """Every prediction, from the parts of the model."""
    visible, masked = torch.from_numpy(CELLS), torch.tensor(MASKED)
    features = model.backbone(torch.nan_to_num(images), visible, 'masked')
    return model.head.predict(model.neck(features, visible), features[-1], visible, masked)


def reference(predicted, images, targets, model):
    """Losses by name from the formulas, None where nothing is left."""
    arrays = {**targets, 'bands': images}
    return {
        name: loss_of(kind, predicted[name], arrays[name].numpy(), MASKED, CELL, config.get('norm_cell', False))
        for name, (kind, config) in KINDS.items()
    }


@pytest.mark.parametrize('pool', ('visible', 'decoded'))
def test_predictions_are_one_linear_layer_each(pool):
    """Pixels of a masked cell come from its decoded site, those of the image from the mean of visible sites and a
    LayerNorm, or from LayerNorms and the mean of all decoded sites."""
    model = make(head=dict(type='MultiTargetHead', targets=TARGETS, pool=pool))
    images, _, _ = make_batch()
    with torch.no_grad():
        predicted = predictions(model, images)
        features = model.backbone(images, torch.from_numpy(CELLS), 'masked')[-1]
        decoded = model.neck(features, torch.from_numpy(CELLS))
        for image, cells in enumerate(CELLS):
            sites = [features[image, :, cell // 3, cell % 3] for cell in cells]
            if pool == 'visible':
                vector = model.head.norm(sum(sites) / len(sites))
            else:
                vector = sum(model.head.norm(site) for site in decoded[image].flatten(1).T) / 6
            for name in ('climate', 'biome'):
                torch.testing.assert_close(predicted[name][image], model.head.preds[name](vector))
            for place, cell in enumerate(MASKED[image]):
                pixels = model.head.preds['radar'](decoded[image, :, cell // 3, cell % 3]).view(CELL * CELL, 3)
                torch.testing.assert_close(predicted['radar'][image, place], pixels)


@pytest.mark.parametrize('missing', MISSING)
def test_losses_are_those_of_the_formulas(missing):
    """Each loss, its weight and the total equal a reference in numpy; a target without values has loss 0."""
    model = make()
    images, samples, targets = make_batch(missing)
    losses = model.loss(images, samples, targets)
    with torch.no_grad():
        predicted = {name: value.numpy() for name, value in predictions(model, images).items()}
    expected = reference(predicted, images, targets, model)
    assert [name for name, loss in expected.items() if loss is None] == (
        list(targets) if missing == 'everything' else []
    )
    for name, loss in expected.items():
        assert float(losses[f'loss/{name}']) == pytest.approx(loss or 0, abs=1e-9), name
    log_variances = model.weighting.log_variances.detach().numpy()
    assert float(losses['loss'].detach()) == pytest.approx(total_of(expected.values(), log_variances), abs=1e-9)
    weights = [float(losses[f'weight/{name}']) for name in KINDS]
    assert weights == pytest.approx(np.exp(-log_variances), abs=1e-12)


@pytest.mark.parametrize('missing', MISSING)
def test_gradients_are_those_of_the_formulas(missing):
    """The gradients of predictions and log-variances are the differences of the reference; where a value is missing
    they are exactly zero."""
    model = make()
    images, samples, targets = make_batch(missing)
    with torch.no_grad():
        predicted = {name: value.requires_grad_() for name, value in predictions(model, images).items()}
    sums, counts = model.head.terms(predicted, {**targets, 'inputs': images}, torch.tensor(MASKED))
    present = counts > 0
    total, _ = model.weighting(torch.where(present, sums / counts.clamp(min=1), 0), present)
    gradients = torch.autograd.grad(total, [*predicted.values(), model.weighting.log_variances])
    plain = {name: value.detach().numpy() for name, value in predicted.items()}
    variances = model.weighting.log_variances.detach().numpy()

    def difference(array, place, step=1e-6):
        ends = []
        for sign in (1, -1):
            array[place] += sign * step
            ends.append(total_of(reference(plain, images, targets, model).values(), variances))
            array[place] -= sign * step
        return (ends[0] - ends[1]) / (2 * step)

    generator = np.random.default_rng(0)
    for (name, array), gradient in zip(plain.items(), gradients):
        for _ in range(4):
            place = tuple(generator.integers(0, size) for size in array.shape)
            assert float(gradient[place]) == pytest.approx(difference(array, place), abs=1e-6), name
        if name in targets and missing == 'everything':
            assert not gradient.any()
    for place in range(len(variances)):
        assert float(gradients[-1][place]) == pytest.approx(difference(variances, (place,)), abs=1e-6)


def test_missing_pixels_have_no_gradient():
    """The gradient of a prediction is exactly zero at missing pixels and nowhere else."""
    model = make()
    images, _, targets = make_batch('some values')
    with torch.no_grad():
        predicted = {name: value.requires_grad_() for name, value in predictions(model, images).items()}
    sums, _ = model.head.terms(predicted, {**targets, 'inputs': images}, torch.tensor(MASKED))
    for name in ('elevation', 'radar', 'cover'):
        gradient = torch.autograd.grad(sums[list(KINDS).index(name)], predicted[name], retain_graph=True)[0]
        array = targets[name].numpy()
        for image, cells in enumerate(MASKED):
            for place, cell in enumerate(cells):
                maps = array[image][None] if name == 'cover' else array[image]
                top, left = cell // 3 * CELL, cell % 3 * CELL
                pixels = maps[:, top : top + CELL, left : left + CELL].reshape(len(maps), -1).T
                there = pixels >= 0 if name == 'cover' else ~np.isnan(pixels)
                found = gradient[image, place].numpy() != 0
                assert (found == np.broadcast_to(there, found.shape)).all() or (name == 'radar' and there.sum() == 1)


@pytest.mark.parametrize('missing', MISSING)
@pytest.mark.parametrize('pool', ('visible', 'decoded'))
def test_every_parameter_has_a_finite_gradient(missing, pool):
    """Whatever is missing, each parameter gets a gradient, as DDP needs, and none is NaN; without any values those of
    a prediction are zero."""
    model = make(head=dict(type='MultiTargetHead', targets=TARGETS, pool=pool))
    images, samples, targets = make_batch(missing)
    model.loss(images, samples, targets)['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        gone = missing == 'everything' and name.startswith('head.') and 'preds.bands' not in name
        assert bool(parameter.grad.any()) != gone, name
    slots = model.weighting.log_variances.grad != 0
    assert slots.tolist() == [missing != 'everything' or name == 'bands' for name in KINDS]


needs_minkowski = pytest.mark.skipif(find_spec('MinkowskiEngine') is None, reason='run `make minkowski`')


@pytest.mark.parametrize('execution', ('packed', pytest.param('minkowski', marks=needs_minkowski)))
@pytest.mark.parametrize('stride', (1, 2, 4))
def test_executions_give_one_loss_and_one_gradient(execution, stride):
    """Packed and masked agree on the total and every gradient, for cells of 8, 16 and 32 pixels."""
    results = []
    for one in ('masked', execution):
        model = make(stride, execution=one)
        images, samples, targets = make_batch('some values', cell=8 * stride)
        loss = model.loss(images, samples, targets)['loss']
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for masked, other in zip(*results, strict=True):
        torch.testing.assert_close(other, masked, rtol=1e-9, atol=1e-10)


def test_no_data_and_statistics():
    """A no-data value is missing like NaN, also where standardising would give it another value's place; ignore_index
    is a missing label; mean and deviation of a target are applied to its values alone."""
    targets = dict(
        bands=TARGETS['bands'],
        elevation=dict(type='PixelValues', channels=1, no_data=0.0, mean=[2.0], std=[4.0]),
        cover=dict(type='PixelClasses', num_classes=4, ignore_index=9),
    )
    model = make(head=dict(type='MultiTargetHead', targets=targets))
    images, samples, arrays = make_batch()
    elevation, cover = arrays['elevation'] + 2, arrays['cover'].clone()
    elevation[:, :, ::3], cover[:, 4:9] = 0.0, 9
    found = model.loss(images, samples, dict(elevation=elevation, cover=cover))
    plain = make(head=dict(type='MultiTargetHead', targets={name: TARGETS[name] for name in targets}))
    elevation, cover = torch.where(elevation == 0, math.nan, (elevation - 2) / 4), torch.where(cover == 9, -1, cover)
    expected = plain.loss(images, samples, dict(elevation=elevation, cover=cover))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_fixed_weights():
    """Fixed weights multiply the losses and are logged; those not named are 1, and the model has no more parameters."""
    model = make(weighting=dict(elevation=0.25, biome=0))
    images, samples, targets = make_batch('some values')
    losses = model.loss(images, samples, targets)
    weights = dict.fromkeys(KINDS, 1.0) | dict(elevation=0.25, biome=0.0)
    assert {name: float(losses[f'weight/{name}']) for name in KINDS} == weights
    total = sum(float(losses[f'loss/{name}']) * weight for name, weight in weights.items())
    assert float(losses['loss'].detach()) == pytest.approx(total, abs=1e-12)
    assert not list(model.weighting.parameters())
    assert model.parse_losses(losses)[0] is losses['loss']


def _train_a_step(folder):
    """One step on this process's half of the images; the first one lacks climate and biome."""
    rank = torch.distributed.get_rank()
    model = nn.parallel.DistributedDataParallel(_Loss(make()))
    model(*_half(rank)).backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], f'{folder}/gradients.pt')


def _half(rank):
    images, samples, targets = make_batch('some values', batch=4)
    targets['climate'][:2] = math.nan
    targets['biome'][:2] = -1
    own = slice(2 * rank, 2 * rank + 2) if rank is not None else slice(None)
    return images[own], samples[own], {name: target[own] for name, target in targets.items()}


class _Loss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *batch):
        return self.model.loss(*batch)['loss']


def test_two_processes_equal_one(tmp_path):
    """Under DDP, with a target missing in one process and others unevenly, gradients are those of all images."""
    in_processes(_train_a_step, str(tmp_path), folder=tmp_path)
    whole = _Loss(make())
    whole(*_half(None)).backward()
    found = torch.load(tmp_path / 'gradients.pt')
    for (name, parameter), gradient in zip(whole.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12, msg=lambda text: f'{name}: {text}')


def test_normalisation_by_group_and_kind():
    """Each image has the statistics of its kind, one per group of bands, and no-data becomes NaN before them."""
    images = torch.rand(3, 5, 8, 8) * 10 + 1
    images[1, 2, 3, 4] = 0
    statistics = dict(l1c=dict(mean=[1.0, 2.0], std=[3.0, 4.0]), l2a=dict(mean=[5.0, 6.0], std=[7.0, 8.0]))
    preprocessor = FCMAEDataPreprocessor(statistics=statistics, statistics_key='level', band_groups=(2, 3), no_data=0)
    kinds = ('l2a', 'l1c', 'l2a')
    samples = [DataSample(metainfo=dict(level=kind)) for kind in kinds]
    found = preprocessor(dict(inputs=images.clone(), data_samples=samples))['inputs'].numpy()
    for image, kind in enumerate(kinds):
        for band in range(5):
            group = int(band >= 2)
            mean, std = (statistics[kind][name][group] for name in ('mean', 'std'))
            expected = (images[image, band].double().numpy() - mean) / std
            if (image, band) == (1, 2):
                assert np.isnan(found[image, band, 3, 4])
                expected[3, 4] = np.nan
            np.testing.assert_allclose(found[image, band], expected, rtol=1e-6)
    assert np.isnan(found).sum() == 1
    single = FCMAEDataPreprocessor(mean=[1, 2], std=[3, 4], band_groups=(2, 3))
    per_channel = FCMAEDataPreprocessor(mean=[1, 1, 2, 2, 2], std=[3, 3, 4, 4, 4])
    data = dict(inputs=images, data_samples=samples)
    assert torch.equal(single(dict(data))['inputs'], per_channel(dict(data))['inputs'])
    with pytest.raises(ValueError, match="level='l3'.*for .'l1c', 'l2a'.: add it there"):
        preprocessor(dict(inputs=images, data_samples=[DataSample(metainfo=dict(level='l3'))] * 3))
    with pytest.raises(ValueError, match='have 2 values, band_groups=.1, 1, 3. 3'):
        FCMAEDataPreprocessor(mean=[1, 2], std=[3, 4], band_groups=(1, 1, 3))
    with pytest.raises(ValueError, match='statistics and statistics_key together'):
        FCMAEDataPreprocessor(statistics=statistics)


def test_reconstruction_of_the_images():
    """Reconstructions come from the target whose source is the images; a perfect prediction gives them back."""
    model = make()
    images, _, _ = make_batch()
    model.head.forward = lambda decoded, cells: model.head.target(images, cells)[0]
    reconstructed = model.reconstruct(images, torch.from_numpy(CELLS))
    torch.testing.assert_close(reconstructed['pasted'], images, rtol=1e-10, atol=1e-10)
    other = make(head=dict(type='MultiTargetHead', targets=dict(elevation=TARGETS['elevation'])))
    with pytest.raises(ValueError, match='no target reconstructs the images'):
        other.reconstruct(images, torch.from_numpy(CELLS))


def with_target(**config):
    return dict(head=dict(type='MultiTargetHead', targets=dict(bands=TARGETS['bands'], other=config)))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (with_target(type='Pixels'), "targets.other.type='Pixels' is unknown: choose from .'PixelValues'"),
        (with_target(type='PixelValues', bands=2), 'targets.other of PixelValues does not know bands'),
        (with_target(type='PixelValues', channels=2, mean=[1.0, 2.0, 3.0], std=[1.0]), 'mean has 3 values'),
        (with_target(type='PixelValues', mean=[1.0], std=[0.0]), 'expected positive deviations'),
        (
            with_target(type='PixelValues', channels=3, source='inputs'),
            'channels=3, but its source, the images, have 2',
        ),
        (with_target(type='PixelClasses', num_classes=4, ignore_index=3), 'ignore_index=3 is one of 4 classes'),
        (with_target(type='ImageClasses'), 'num_classes=0: expected 2 or more, or labels'),
        (with_target(type='ImageValues', source='inputs'), 'only PixelValues have one'),
        (dict(head=dict(type='MultiTargetHead', targets={})), 'targets is empty'),
        (dict(head=dict(type='MultiTargetHead', targets=dict(type=TARGETS['radar']))), "'type' cannot be the name"),
        (
            dict(head=dict(type='MultiTargetHead', targets=dict(x=TARGETS['biome']))),
            'leave the decoder without training',
        ),
        (dict(head=dict(type='MultiTargetHead', targets=TARGETS, pool='all')), "pool='all'.*'visible', 'decoded'"),
        (dict(head=dict(type='FCMAEHead')), "MPMAE needs head=dict.type='MultiTargetHead'"),
        (dict(weighting=dict(elevations=2)), "weighting=.'elevations': 2.: expected weights .* for some of .'bands'"),
        (dict(weighting='learned'), "weighting='learned': expected 'uncertainty', 'equal' or a dict"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    """A target, weight or head that cannot work is refused with its name and what is expected."""
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_batches_are_refused():
    """Targets of other names, shapes or classes, other bands and other cells are refused with what to set."""
    model = make()
    images, samples, targets = make_batch()
    with pytest.raises(ValueError, match=r"samples have the targets \['biome'.*names \['elevation'\], too"):
        model.loss(images, samples, {name: one for name, one in targets.items() if name != 'elevation'})
    with pytest.raises(ValueError, match=r"target 'radar' has shape \(2, 2, 16, 24\): expected \(2, 3, 16, 24\)"):
        model.loss(images, samples, {**targets, 'radar': targets['radar'][:, :2]})
    with pytest.raises(ValueError, match="target 'cover': class 7 is outside the range: expected 0 to 3"):
        model.loss(images, samples, {**targets, 'cover': torch.full_like(targets['cover'], 7)})
    with pytest.raises(ValueError, match='the images have 1 bands, but model.backbone has in_channels=2'):
        model.loss(images[:, :1], samples, targets)
    other = [DataSample(metainfo=dict(visible_cells=cells, cell_size=16)) for cells in CELLS]
    with pytest.raises(ValueError, match='FCMAEMaskGenerator has cell=16, .* have 8 pixels.*: set cell=8'):
        model.loss(images, other, targets)


def test_step_is_one_graph():
    """torch.compile takes forward and losses as one graph, which an operation that reads values would break; losses and
    gradients are the eager ones."""
    images, samples, targets = make_batch('some values')
    results = []
    for compiled in (False, True):
        model = make()
        if compiled:
            model.compile_loss(backend='eager', fullgraph=True, dynamic=False)
        loss = model.loss(images, samples, targets)['loss']
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-10, atol=1e-12)


def test_sites_of_all_bands_together_are_refused():
    """Missing values are a matter of single bands here, so the switch for whole pixels is refused, not ignored."""
    with pytest.raises(ValueError, match='valid_sites=True: MPMAE reads missing values as 0'):
        MPMAE(
            dict(type='ConvNeXtV2', arch=NARROW, in_channels=2, out_indices=(3,), out_norm=False, valid_sites=True),
            dict(type='FCMAEDecoder', channels=8),
            dict(type='MultiTargetHead', targets=TARGETS),
        )
