"""The paper's pretraining ablations: each leaf builds, and every decoder keeps FCMAE's contract."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from small_models import NARROW
from sparse_reference import loss_reference
from torch import nn

from mmconvnextv2.models.convnext_v2 import ARCHS
from mmconvnextv2.pretrain import FCMAE, FCMAEMaskGenerator
from mmconvnextv2.pretrain.ablation_decoders import sincos_positions
from mmconvnextv2.pretrain.masking import num_visible

CONFIGS = Path(__file__).parents[2] / 'configs'
BASE = 'fcmae_convnextv1-b'
LEAVES = sorted((CONFIGS / 'ablations').glob(f'{BASE}_*.py'))
VISIBLE = np.array([[0, 2], [1, 5]])  # of 2 x 3 cells
MASKED = torch.tensor([[1, 3, 4, 5], [0, 2, 3, 4]])
DECODERS = {
    'convnext': dict(type='FCMAEDecoder', channels=16, depth=2),
    'unet': dict(type='FCMAEUNetDecoder', channels=16),
    'unet-skip': dict(type='FCMAEUNetDecoder', channels=16, skips=True),
    'transformer': dict(type='FCMAETransformerDecoder', channels=16, depth=2, num_heads=4),
}
# What differs from the reference leaf, by the piece of the name that says it.
EXPECTED = {
    '': {},
    'leaky': {'execution': 'leaky'},
    'transformer': {'type': 'FCMAETransformerDecoder'},
    'unet': {'type': 'FCMAEUNetDecoder'},
    'unet-skip': {'type': 'FCMAEUNetDecoder', 'skips': True},
    **{f'decoder-depth{depth}': {'depth': depth} for depth in (2, 4, 8, 12)},
    **{f'decoder-width{width}': {'channels': width} for width in (128, 256, 768, 1024)},
    **{f'mask0.{tenth}': {'mask_ratio': tenth / 10} for tenth in (1, 2, 3, 4, 5, 7, 8, 9)},
}


def make_model(decoder, in_channels=3, execution='packed'):
    torch.manual_seed(0)
    backbone = dict(
        type='ConvNeXtV2',
        arch=NARROW,
        in_channels=in_channels,
        out_norm=False,
        out_indices=(0, 1, 2, 3) if 'skip' in decoder else (3,),
    )
    model = FCMAE(backbone, dict(DECODERS[decoder]), dict(type='FCMAEHead'), execution=execution).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def make_samples():
    return [DataSample(metainfo=dict(visible_cells=cells)) for cells in VISIBLE]


def make_images(channels=3):
    return torch.randn(2, channels, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def shown_pixels():
    shown = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    shown[0, :, :32, :32] = shown[0, :, :32, 64:] = shown[1, :, :32, 32:64] = shown[1, :, 32:, 64:] = True
    return shown


def name_of(leaf):
    return leaf.stem.replace(f'{BASE}_', '', 1).replace('64xb64-800e_in1k', '').strip('_')


def test_every_ablation_has_a_leaf():
    """There is one leaf for each row of the paper's ablations, and no other."""
    assert sorted(map(name_of, LEAVES)) == sorted(EXPECTED)


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_leaf_differs_in_what_it_says(leaf):
    """A leaf builds on ConvNeXt V1-Base with the decoder, width, depth, mask ratio and execution of its name, and the
    recipe is otherwise that of FCMAE."""
    assert len(leaf.read_text().splitlines()) <= 25 and 'arXiv 2301.00808' in leaf.read_text()
    cfg = Config.fromfile(str(leaf))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.backbone.channels == ARCHS['base']['channels'] and model.backbone.depths == ARCHS['base']['depths']
    assert model.backbone.stages[3][0].grn is None and model.backbone.stages[3][0].gamma is not None
    ratio = [step.mask_ratio for step in cfg.train_dataloader.dataset.pipeline if step.type == 'FCMAEMaskGenerator']
    kind, unet = type(model.neck).__name__, hasattr(model.neck, 'projections')
    found = {
        'type': kind,
        'execution': model.execution,
        'mask_ratio': ratio[0],
        'skips': model.neck.skips,
        'channels': (model.neck.projections[0] if unet else model.neck.proj).out_channels,
        'depth': len(model.neck.blocks) if kind == 'FCMAEDecoder' else 1,
    }
    usual = {
        'type': 'FCMAEDecoder',
        'execution': 'packed',
        'mask_ratio': 0.6,
        'skips': False,
        'channels': 512,
        'depth': 1,
    }
    assert found == {**usual, **EXPECTED[name_of(leaf)]}
    assert cfg.train_cfg.max_epochs == 800 and cfg.auto_scale_lr.base_batch_size == 4096
    pipeline = [
        {**step, 'mask_ratio': 0.6} if 'mask_ratio' in step else step for step in cfg.train_dataloader.dataset.pipeline
    ]
    recipe = Config.fromfile(str(CONFIGS / 'fcmae' / 'fcmae_convnextv2-b_64xb64-800e_in1k.py'))
    assert pipeline == recipe.train_dataloader.dataset.pipeline and cfg.optim_wrapper == recipe.optim_wrapper


@pytest.mark.parametrize('leaf', LEAVES, ids=name_of)
def test_narrow_leaf_trains_a_step(leaf):
    """A narrow copy of each leaf makes one AdamW step in which every parameter has a finite gradient that is not
    all zero, and moves."""
    cfg = Config.fromfile(str(leaf))
    cfg.model.backbone.arch = NARROW
    cfg.model.neck.channels = 16
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    ratio = [step.mask_ratio for step in cfg.train_dataloader.dataset.pipeline if step.type == 'FCMAEMaskGenerator'][0]
    samples = [
        DataSample(metainfo=FCMAEMaskGenerator(ratio).transform(dict(img=np.zeros((128, 96, 3))))) for _ in range(2)
    ]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.loss(torch.randn(2, 3, 128, 96), samples)['loss'].backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize('decoder', DECODERS)
def test_masked_pixels_change_the_target_alone(decoder):
    """Other masked pixels, even NaN, leave the decoded map unchanged, bit for bit, for every decoder."""
    model, images, shown = make_model(decoder), make_images(), shown_pixels()
    visible = torch.from_numpy(VISIBLE)
    with torch.no_grad():
        decoded, noise, nan = (
            model.neck(model.backbone(torch.where(shown, images, other), visible, 'packed'), visible)
            for other in (images, torch.randn_like(images), torch.tensor(torch.nan, dtype=images.dtype))
        )
        changed = torch.where(shown, images, torch.randn_like(images))
        losses = [model.loss(one, make_samples())['loss'] for one in (images, changed)]
        moved = model.neck(model.backbone(images + shown, visible, 'packed'), visible)
    assert torch.equal(decoded, noise) and torch.equal(decoded, nan)
    assert losses[0] != losses[1] and not torch.equal(decoded, moved)


@pytest.mark.parametrize('decoder', DECODERS)
def test_features_of_masked_cells_never_enter(decoder):
    """Whatever the encoder gives at masked cells, NaN included, the decoder puts its mask token there; at visible cells
    it reads every one of the maps it is given."""
    model = make_model(decoder)
    visible = torch.from_numpy(VISIBLE)
    with torch.no_grad():
        features = model.backbone(make_images(), visible, 'packed')
        decoded = model.neck(features, visible)
        for number, one in enumerate(features):
            shown = F.interpolate(shown_pixels().double(), one.shape[-2:]) > 0.5
            spoiled = [*features[:number], torch.where(shown, one, torch.nan), *features[number + 1 :]]
            assert torch.equal(model.neck(spoiled, visible), decoded)
            shifted = [*features[:number], one + shown, *features[number + 1 :]]
            assert not torch.equal(model.neck(shifted, visible), decoded)


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('channels', (1, 5))
def test_loss_is_the_published_one(decoder, channels):
    """Whatever the decoder and the number of channels, the loss on images that are not square is the mean squared error
    on masked cells against pixels normalised per cell, by a plain loop."""
    model, images = make_model(decoder, channels), make_images(channels)
    visible = torch.from_numpy(VISIBLE)
    with torch.no_grad():
        decoded = model.neck(model.backbone(images, visible, 'packed'), visible)
        expected = loss_reference(model.head, decoded, images, VISIBLE.tolist())
        loss = model.loss(images, make_samples())['loss']
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize('decoder', DECODERS)
def test_executions_agree_under_every_decoder(decoder):
    """Packed and masked encoders give one loss and one gradient through each decoder."""
    results = []
    for execution in ('packed', 'masked'):
        model = make_model(decoder, execution=execution)
        loss = model.loss(make_images(), make_samples())['loss']
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for packed, masked in zip(*results, strict=True):
        torch.testing.assert_close(packed, masked, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('decoder', DECODERS)
def test_reconstruction_undoes_the_normalisation(decoder):
    """The reconstruction of a cell is its predicted pixels times its deviation plus its mean, zero at visible cells."""
    model, images = make_model(decoder), make_images()
    visible = torch.from_numpy(VISIBLE)
    reconstructed = model.reconstruct(images, visible)
    with torch.no_grad():
        decoded = model.neck(model.backbone(images, visible, 'packed'), visible)
        predicted = model.head(decoded, MASKED).view(2, 4, 32, 32, 3)
    expected = torch.zeros_like(images)
    for image, cells in enumerate(MASKED.tolist()):
        for number, cell in enumerate(cells):
            where = (
                image,
                slice(None),
                slice(cell // 3 * 32, cell // 3 * 32 + 32),
                slice(cell % 3 * 32, cell % 3 * 32 + 32),
            )
            deviation = (images[where].var() + 1e-6).sqrt()
            expected[where] = predicted[image, number].permute(2, 0, 1) * deviation + images[where].mean()
    torch.testing.assert_close(reconstructed['reconstruction'], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(reconstructed['pasted'], torch.where(shown_pixels(), images, reconstructed['reconstruction']))


def test_transformer_positions_are_those_of_the_formula():
    """The position of a cell is the sine and cosine of its row, then of its column, over wavelengths 2 pi 10000^(i/n);
    no two cells of an image that is not square share one."""
    positions = sincos_positions(2, 3, 16, torch.zeros((), dtype=torch.float64))
    for cell in range(6):
        parts = []
        for coordinate in divmod(cell, 3):
            angles = np.array([coordinate / 10000 ** (i / 4) for i in range(4)])
            parts += [np.sin(angles), np.cos(angles)]
        np.testing.assert_allclose(positions[cell].numpy(), np.concatenate(parts), rtol=1e-12, atol=1e-15)
    assert len(positions.unique(dim=0)) == 6


@pytest.mark.parametrize(
    'decoder, message',
    [
        (dict(type='FCMAEUNetDecoder', channels=12), 'channels=12 of FCMAEUNetDecoder.*multiple of 8'),
        (
            dict(type='FCMAEUNetDecoder', channels=16, skips=True),
            r'skips=True .*returns stages \(3,\): set model.backbone',
        ),
        (
            dict(type='FCMAETransformerDecoder', channels=18, num_heads=3),
            'channels=18 .*multiple of 4 and of num_heads=3',
        ),
    ],
)
def test_impossible_decoder_is_refused(decoder, message):
    """A decoder that cannot be built for its backbone is refused with what to change."""
    backbone = dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False)
    with pytest.raises(ValueError, match=message):
        FCMAE(backbone, decoder, dict(type='FCMAEHead'))


@pytest.mark.parametrize(
    'ratio, counts',
    [
        (0.1, (44, 10, 3, 21)),
        (0.2, (39, 9, 3, 19)),
        (0.3, (34, 8, 2, 16)),
        (0.4, (29, 7, 2, 14)),
        (0.5, (24, 6, 2, 12)),
        (0.6, (19, 4, 1, 9)),
        (0.7, (14, 3, 1, 7)),
        (0.8, (9, 2, None, 4)),
        (0.9, (4, 1, None, 2)),
    ],
)
def test_ratio_grid_shows_the_right_number_of_cells(ratio, counts):
    """Each ratio of the ablation shows floor(n (1 - r)) of 49, 12, 4 and 24 cells, written out by hand; where that is
    none, the ratio is refused."""
    sizes = ((224, 224), (96, 128), (64, 64), (192, 128))
    for (height, width), count in zip(sizes, counts):
        image = dict(img=np.zeros((height, width, 1)))
        if count is None:
            with pytest.raises(ValueError, match=rf'{height}x{width} pixels.*masks every cell of 4.*0.25 .*0.75'):
                FCMAEMaskGenerator(ratio).transform(image)
        else:
            cells = FCMAEMaskGenerator(ratio).transform(image)['visible_cells']
            assert len(set(cells.tolist())) == count and cells.max() < height * width // 1024


@pytest.mark.parametrize(
    'height, width, low, high',
    [(224, 224, '0.020', '0.979'), (64, 96, '0.16', '0.83'), (320, 320, '0.0100', '0.9900'), (64, 32, '0.50', '0.50')],
)
def test_ratios_that_the_error_names_work(height, width, low, high):
    """The error names the image's size, the ratio that hides one cell and the one that shows one, as printed."""
    image, num_cells = dict(img=np.zeros((height, width, 1))), height * width // 1024
    with pytest.raises(ValueError, match=rf'images of {height}x{width} pixels.*{low} \(.*{high} \('):
        FCMAEMaskGenerator(0.999).transform(image)
    assert num_visible(num_cells, float(low)) == num_cells - 1
    assert num_visible(num_cells, float(high)) == 1


def test_one_cell_cannot_be_masked():
    """An image of one cell has no workable ratio; the error suggests larger images."""
    with pytest.raises(ValueError, match='images of 32x32 pixels.*larger images'):
        FCMAEMaskGenerator(0.5).transform(dict(img=np.zeros((32, 32, 3))))
