"""FCMAE: its loss, its masks and its images depend on what the paper says, and on nothing else."""

import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from small_models import NARROW, make_fcmae
from sparse_reference import loss_reference
from torch.utils.data import DataLoader

from mmconvnextv2.pretrain import DeterministicSampler, FCMAEMaskGenerator, UnlabelledImages
from mmconvnextv2.pretrain.masking import masked_cells_of, num_visible

CELLS = np.array([[0, 2], [1, 5]])  # of 2 x 3 cells
CONFIG = 'configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'


def make_samples():
    samples = [DataSample() for _ in CELLS]
    for sample, cells in zip(samples, CELLS):
        sample.set_metainfo(dict(visible_cells=cells))
    return samples


def make_images(channels=3):
    return torch.randn(2, channels, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('channels', (3, 5))
def test_loss_is_the_published_one(channels):
    """The loss is the mean squared error on masked cells against pixels normalised per cell, by a plain loop."""
    model, images = make_fcmae(in_channels=channels), make_images(channels)
    visible = torch.from_numpy(CELLS)
    with torch.no_grad():
        decoded = model.neck(model.backbone(images, visible, 'packed')[-1], visible)
        expected = loss_reference(model.head, decoded, images, CELLS.tolist())
        loss = model.loss(images, make_samples())['loss']
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def test_executions_give_one_loss_and_one_gradient():
    """Packed and masked give the same loss and gradients, and every parameter has one, as DDP needs."""
    results = []
    for execution in ('packed', 'masked'):
        model = make_fcmae(execution=execution)
        loss = model.loss(make_images(), make_samples())['loss']
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for packed, masked in zip(*results, strict=True):
        torch.testing.assert_close(packed, masked, rtol=1e-9, atol=1e-11)
    assert all(gradient.any() for gradient in results[0])


def test_reconstruction_keeps_visible_pixels():
    """In the pasted image visible cells are the original's bits, and the prediction fills only the others."""
    images = make_images()
    reconstructed = make_fcmae().reconstruct(images, torch.from_numpy(CELLS))
    shown = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    shown[0, :, :32, :32] = shown[0, :, :32, 64:] = shown[1, :, :32, 32:64] = shown[1, :, 32:, 64:] = True
    assert torch.equal(reconstructed['pasted'] * shown, images * shown)
    assert torch.equal(reconstructed['masked'], images * shown)
    assert not (reconstructed['reconstruction'] * shown).any()
    assert ((reconstructed['pasted'] - images).abs() * ~shown).sum() > 0


def test_masked_cells_complement_visible_ones():
    """Masked cells are exactly the others, ascending."""
    assert masked_cells_of(torch.from_numpy(CELLS), 6).tolist() == [[1, 3, 4, 5], [0, 2, 3, 4]]


def test_counts_of_visible_cells():
    """The paper's 60 % of 49 cells leaves 19, rounding errors cost no cell, and all or nothing is refused."""
    assert num_visible(49, 0.6) == 19 and num_visible(10, 0.9) == 1
    for ratio in (0.0, 0.99):
        with pytest.raises(ValueError, match=f'mask_ratio={ratio}'):
            num_visible(49, ratio)
    with pytest.raises(ValueError, match='100x64'):
        FCMAEMaskGenerator().transform(dict(img=np.zeros((100, 64, 3))))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(6):
        (tmp_path / 'images' / str(number % 2)).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / str(number % 2) / f'{number}.png')
    return tmp_path / 'images'


def make_pipeline():
    return [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=64),
        dict(type='RandomFlip', prob=0.5),
        dict(type='FCMAEMaskGenerator'),
        dict(type='PackInputs', meta_keys=('img_path', 'visible_cells')),
    ]


@pytest.mark.parametrize('num_workers', (0, 2))
def test_samples_depend_only_on_seed_epoch_and_index(folder, num_workers):
    """Crops, flips and masks are the same with any number of workers and global state, and differ between epochs."""
    dataset = UnlabelledImages(str(folder), make_pipeline())
    sampler = DeterministicSampler(dataset, seed=7)
    epochs = []
    for epoch in (0, 0, 1):
        torch.manual_seed(len(epochs))
        np.random.seed(len(epochs))
        sampler.set_epoch(epoch)
        batches = DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=num_workers)
        epochs.append({sample['data_samples'].img_path: sample for sample in batches})
    expected = {dataset[draw]['data_samples'].img_path: dataset[draw] for draw in [*_draws(dataset, 7, 0)]}
    assert len(expected) == 6
    for path, sample in expected.items():
        for same in epochs[:2]:
            assert torch.equal(same[path]['inputs'], sample['inputs'])
            assert np.array_equal(same[path]['data_samples'].visible_cells, sample['data_samples'].visible_cells)
    assert any(not torch.equal(epochs[2][path]['inputs'], expected[path]['inputs']) for path in expected)


def _draws(dataset, seed, epoch):
    sampler = DeterministicSampler(dataset, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_runner_trains_resumes_and_reconstructs(folder, tmp_path):
    """The shipped folder config trains through mmengine's Runner, writes a reconstruction, and resumes."""
    from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()

    def run(epochs, resume):
        cfg = Config.fromfile(CONFIG)
        cfg.merge_from_dict(
            {
                'work_dir': str(tmp_path / 'work'),
                'resume': resume,
                'train_cfg.max_epochs': epochs,
                'train_dataloader.dataset.data_root': str(folder),
                'train_dataloader.batch_size': 3,
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
                'train_dataloader.dataset.pipeline.1.scale': 64,
                'default_hooks.checkpoint.interval': 1,
            }
        )
        cfg.model.backbone.arch = NARROW
        cfg.model.neck.channels = 12
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    first = run(1, False)
    before = first.model.state_dict()['neck.mask_token'].clone()
    second = run(2, True)
    assert second.iter == 4
    assert not torch.equal(second.model.state_dict()['neck.mask_token'], before)
    assert len(list((tmp_path / 'work').rglob('reconstruction_*.png'))) == 2


def test_unaided_reconstruction_uses_visible_cells_only():
    """Masked pixels change the reconstruction and not the unaided one, which is
    the prediction on a mean and deviation averaged over visible cells by hand."""
    model = make_fcmae().double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images, visible = torch.randn(1, 3, 64, 96, dtype=torch.float64), torch.tensor([[0, 1, 5]])
    changed, masked = images.clone(), [2, 3, 4]
    changed[:, :, :32, 64:] += 3.0  # cell 2 of 2 x 3
    before, after = (model.reconstruct(one, visible) for one in (images, changed))
    torch.testing.assert_close(before['unaided'], after['unaided'])
    assert not torch.equal(before['reconstruction'], after['reconstruction'])

    cells = images.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 4, 5, 1).reshape(6, -1)  # (6, 32 * 32 * 3)
    mean, deviation = cells.mean(1), (cells.var(1) + 1e-6).sqrt()
    predicted = model.head(
        model.neck(model.backbone(images, visible, model.execution), visible), torch.tensor([masked])
    )[0]
    for pixels, cell in zip(predicted, masked):
        weights = [math.exp(-((cell // 3 - one // 3) ** 2 + (cell % 3 - one % 3) ** 2) / 2) for one in (0, 1, 5)]
        near = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        expected = pixels * (near @ deviation[[0, 1, 5]]) + near @ mean[[0, 1, 5]]
        row, column = 32 * (cell // 3), 32 * (cell % 3)
        found = before['unaided'][0, :, row : row + 32, column : column + 32].permute(1, 2, 0).flatten()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('norm', [None, dict(type='GRN', aggregation='L1')])
def test_one_switch_for_response_norms(norm):
    """``model.response_norm`` sets the norm of encoder and decoder; without it each keeps its own."""
    cfg = Config.fromfile('configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py')
    cfg.merge_from_dict({'model.response_norm': norm})
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    norms = [block.grn for block in [*model.backbone.stages[0], *model.neck.blocks]]
    if norm is None:
        assert norms == [None] * 3
    else:
        assert all(one.aggregation == 'L1' for one in norms)
