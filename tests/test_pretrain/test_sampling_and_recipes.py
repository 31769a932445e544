"""Masks, samplers and recipes of FCMAE; its loss and a run of its Runner are proved in test_fcmae.py."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from small_models import make_fcmae

import mmconvnextv2.pretrain.sampler as data
from mmconvnextv2.models.convnext_v2 import ARCHS
from mmconvnextv2.pretrain import DeterministicSampler, FCMAEMaskGenerator
from mmconvnextv2.pretrain.masking import num_visible, stack_visible_cells

CONFIGS = Path(__file__).parents[2] / 'configs' / 'fcmae'
LEAVES = sorted(CONFIGS.glob('*.py'))
VISIBLE = np.array([[0, 2], [1, 5]])  # of 2 x 3 cells


def make_samples(visible=VISIBLE):
    return [DataSample(metainfo=dict(visible_cells=cells)) for cells in visible]


def test_masked_pixels_change_the_target_alone(monkeypatch):
    """Other masked pixels give the same decoded map, bit for bit, and another loss; the loss does not look at the
    pixels of visible cells but through the encoder."""
    model, images = make_fcmae(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    shown = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    shown[0, :, :32, :32] = shown[0, :, :32, 64:] = shown[1, :, :32, 32:64] = shown[1, :, 32:, 64:] = True
    decoded = []
    model.neck.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    changed = torch.where(shown, images, torch.randn_like(images))
    losses = [model.loss(one, make_samples())['loss'] for one in (images, changed)]
    assert torch.equal(*decoded) and losses[0] != losses[1]
    hidden = torch.tensor([[1, 3, 4, 5], [0, 2, 3, 4]])
    spoiled = torch.where(shown, torch.nan, images)
    assert torch.equal(model.head.loss(decoded[0], spoiled, hidden), losses[0])


def test_target_without_normalisation_is_the_pixels():
    """With norm_pix=False the target is the masked cells' own pixels, in raster order and channels last."""
    model, images = make_fcmae(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    model.head.norm_pix = False
    target, mean, deviation = model.head.target(images, torch.tensor([[4], [2]]))
    assert torch.equal(target[0, 0].view(32, 32, 3), images[0, :, 32:, 32:64].permute(1, 2, 0))
    assert torch.equal(target[1, 0].view(32, 32, 3), images[1, :, :32, 64:].permute(1, 2, 0))
    assert not mean.any() and (deviation == 1).all()


def test_published_ratio_shows_19_of_49():
    """At 224 pixels and ratio 0.6 a draw shows 19 different cells, ascending, and each cell about as often."""
    np.random.seed(0)
    draws = [FCMAEMaskGenerator(0.6).transform(dict(img=np.zeros((224, 224, 3))))['visible_cells'] for _ in range(2000)]
    assert all(len(draw) == 19 and (np.diff(draw) > 0).all() for draw in draws)
    share = np.bincount(np.concatenate(draws), minlength=49) / len(draws)
    assert abs(share - 19 / 49).max() < 5 * np.sqrt(19 / 49 * 30 / 49 / len(draws))


@pytest.mark.parametrize('ratio', (0, 1, -0.1, 1.5))
def test_impossible_ratio_is_refused(ratio):
    """A share outside (0, 1) is refused before any image is read."""
    with pytest.raises(ValueError, match=rf'mask_ratio={ratio}: expected a share of masked cells in \(0, 1\)'):
        FCMAEMaskGenerator(ratio)


@pytest.mark.parametrize(
    'num_cells, ratio, state', [(49, 0.99, 'every cell'), (1, 0.5, 'every cell'), (49, 0.0, 'no cell')]
)
def test_all_or_nothing_is_refused(num_cells, ratio, state):
    """A ratio that leaves no cell, or hides none, of this image is refused with both numbers."""
    with pytest.raises(ValueError, match=f'mask_ratio={ratio} masks {state} of {num_cells}'):
        num_visible(num_cells, ratio)


@pytest.mark.parametrize('num_cells', (4, 49, 50, 144))
def test_every_ratio_in_the_error_works(num_cells):
    """The ratios that the error prints hide one cell and leave one."""
    with pytest.raises(ValueError) as error:
        num_visible(num_cells, 1.0)
    offered = re.search(r'choose (\S+) \(masks one cell\) to (\S+) \(leaves one visible\)', str(error.value))
    low, high = map(float, offered.groups())
    assert num_visible(num_cells, low) == num_cells - 1 and num_visible(num_cells, high) == 1


def test_samples_without_or_with_uneven_cells_are_refused():
    """A batch whose samples lack cells, or show different numbers, is refused with what to do."""
    with pytest.raises(ValueError, match='FCMAEMaskGenerator'):
        stack_visible_cells([DataSample()], torch.device('cpu'))
    with pytest.raises(ValueError, match=r'show \[1, 2\] cells'):
        stack_visible_cells(make_samples([np.array([0]), np.array([0, 1])]), torch.device('cpu'))


@pytest.mark.parametrize(
    'execution, message', [('fast', "'fast' is unknown: choose from"), ('dense', "'dense' cannot use visible_cells")]
)
def test_execution_that_cannot_mask_is_refused(execution, message):
    """A wrong execution key is refused when the model is built, not at the first step."""
    with pytest.raises(ValueError, match=message):
        make_fcmae(execution=execution)


@pytest.mark.parametrize('size, ranks', [(12, 3), (13, 4), (2, 5)])
def test_ranks_share_every_image(monkeypatch, size, ranks):
    """Over all ranks an epoch visits each image once, except for the few repeats that make ranks even; dealing the
    one-process order out in turn gives each rank's."""

    def draws(rank, world_size, epoch):
        monkeypatch.setattr(data, 'get_dist_info', lambda: (rank, world_size))
        sampler = DeterministicSampler(range(size), seed=3)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    for epoch in (0, 1):
        alone = draws(0, 1, epoch)
        shares = [draws(rank, ranks, epoch) for rank in range(ranks)]
        assert sorted(draw.index for draw in alone) == list(range(size))
        dealt = [shares[number % ranks][number // ranks] for number in range(-(-size // ranks) * ranks)]
        assert dealt[:size] == alone and set(dealt) == set(alone)
    assert [draw.index for draw in draws(0, 1, 0)] != [draw.index for draw in draws(0, 1, 1)] or size < 3


def test_draws_leave_global_state_alone():
    """Inside ``seeded`` numbers depend on its arguments alone, and the generators outside go on as if it never ran."""

    def numbers():
        return np.random.rand(), torch.rand(1).item(), data.random.random()

    with data.seeded(1, 2, 3):
        first = numbers()
    with data.seeded(9, 9, 9):
        outside = numbers()
    with data.seeded(9, 9, 9):
        with data.seeded(1, 2, 3):
            assert numbers() == first
        assert numbers() == outside
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        with data.seeded(*other):
            assert not set(numbers()) & set(first)


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)
def test_fcmae_leaf_builds(leaf):
    """Each recipe builds at its own size with a decoder of width 512 that predicts 32 x 32 x 3 values, or 16 x 16
    pixels of each of MMEarth's targets, reads the published learning rate off its batch, and lasts the epochs of its
    name."""
    cfg = Config.fromfile(str(leaf))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    letter = leaf.stem.split('-')[1].split('_')[0]
    arch = next(name for name in ARCHS if name[0] == letter[0])
    assert model.backbone.channels == ARCHS[arch]['channels'] and model.backbone.depths == ARCHS[arch]['depths']
    assert tuple(model.neck.proj.weight.shape[:2]) == (512, ARCHS[arch]['channels'][-1]) and len(model.neck.blocks) == 1
    if '_mp-mae_' in leaf.stem:
        bands = dict(sentinel2=12, sentinel1=8, aster=2, canopy_height_eth=2, dynamic_world=9, esa_worldcover=11)
        vectors = dict(biome=14, eco_region=846, era5=12, lat=2, lon=2, month=2)
        outputs = {name: 256 * count for name, count in bands.items()} | vectors
        assert {name: pred.out_features for name, pred in model.head.preds.items()} == outputs
        assert model.backbone.cell == cfg.train_pipeline[3].cell == 16 and cfg.train_pipeline[1].crop_size == 112
    else:
        assert tuple(model.head.pred.weight.shape) == (3072, 512)
    assert not hasattr(model.backbone, 'norm3')
    base_batch = {'folder': 64, 'continue': 256}.get(leaf.stem.split('_')[-1], 4096)
    assert (leaf.stem.split('_')[-1] == 'continue') == (cfg.model.get('init_cfg') is not None)
    assert cfg.auto_scale_lr.base_batch_size == base_batch
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1.5e-4 * base_batch / 256)
    epochs = int(leaf.stem.split('e_')[-2].split('-')[-1])
    assert cfg.train_cfg.max_epochs == epochs and cfg.param_scheduler[-1].end == epochs
