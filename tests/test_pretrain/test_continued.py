"""Continued pretraining starts from the bits of a file: the encoder of any layout, and the decoder if there is one."""

import logging

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from PIL import Image
from small_models import NARROW, make_fcmae

from mmconvnextv2.checkpoint import from_canonical, pretraining_from_canonical
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.pretrain import FCMAE

CELLS = np.array([[0, 2], [1, 5]])  # of 2 x 3 cells
BACKBONE = dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False)


def start_from(weights, folder, in_channels=3, **neck):
    """Build an FCMAE, start it from weights in a file, and return it with what was logged."""
    torch.save(weights, folder / 'weights.pth')
    model = FCMAE(
        backbone=dict(BACKBONE, in_channels=in_channels),
        neck=dict(dict(type='FCMAEDecoder', channels=12), **neck),
        head=dict(type='FCMAEHead'),
        init_cfg=dict(type='FCMAEPretrained', checkpoint=str(folder / 'weights.pth')),
    )
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        model.init_weights()
    finally:
        logger.removeHandler(handler)
    return model.double(), [one for one in said if 'decoder' in one][-1]


def loss_of(model, images):
    samples = [DataSample(metainfo=dict(visible_cells=cells)) for cells in CELLS]
    return model.loss(images, samples)['loss']


def make_images(channels=3):
    return torch.randn(2, channels, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('write', [lambda weights: weights, pretraining_from_canonical], ids=['own', 'official-sparse'])
def test_whole_model_goes_on(tmp_path, write):
    """From a checkpoint with a decoder, ours or the official script's, the loss and every gradient are the old ones."""
    before = make_fcmae().float()
    after, said = start_from(write(before.state_dict()), tmp_path)
    assert said.endswith('the decoder was loaded, too')
    losses = [loss_of(model.double(), make_images()) for model in (before, after)]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, (before, after))]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize('layout', ['official-dense', 'timm', 'huggingface'])
def test_encoder_of_any_layout(tmp_path, layout):
    """A file without a decoder gives the encoder its bits; the decoder is drawn as for a new model, which is logged."""
    before = make_fcmae().float()
    encoder = before.backbone.state_dict()
    after, said = start_from(from_canonical(encoder, layout), tmp_path)
    assert all(torch.equal(value.double(), after.backbone.state_dict()[name]) for name, value in encoder.items())
    assert said.endswith('the file has no decoder, which is newly initialised')
    assert 0.01 < after.neck.mask_token.std() < 0.04 and after.head.pred.weight.std() < 0.04


def test_decoder_of_another_width_is_left(tmp_path):
    """A decoder of another width does not fit; the encoder is loaded, and the log names what differs."""
    before = make_fcmae().float()
    after, said = start_from(before.state_dict(), tmp_path, channels=16)
    assert "the file's decoder is another one (" in said and 'newly initialised' in said
    assert torch.equal(after.backbone.stages[0][0].grn.gamma, before.backbone.stages[0][0].grn.gamma.double())


@pytest.mark.parametrize('channels', [1, 6])
def test_other_channels(tmp_path, channels):
    """Bands that repeat the old channels give the features of the old model, and are predicted as these are; a grey
    image gives those of its copies, and the mean of their predictions."""
    before = make_fcmae().float()
    after, said = start_from(before.state_dict(), tmp_path, in_channels=channels)
    assert f'from 3 to {channels} image channels' in said
    visible, masked = torch.from_numpy(CELLS), torch.tensor([[1, 3, 4, 5], [0, 2, 3, 4]])
    grey = make_images(1)
    with torch.no_grad():
        old, new = (
            model.double().backbone(grey.expand(-1, count, -1, -1), visible)[-1]
            for model, count in ((before, 3), (after, channels))
        )
        torch.testing.assert_close(new, old)
        old, new = (
            model.head(model.neck(maps, visible), masked).unflatten(2, (-1, count))
            for model, maps, count in ((before, old, 3), (after, new, channels))
        )
    expected = old.mean(3, keepdim=True) if channels == 1 else old[..., torch.arange(channels) % 3]
    torch.testing.assert_close(new, expected)


def test_weights_are_loaded_once(tmp_path):
    """A second initialisation, which mmengine ignores, does not load the file over trained weights."""
    model, _ = start_from(make_fcmae().float().state_dict(), tmp_path)
    torch.nn.init.constant_(model.neck.mask_token, 3.0)
    model.init_weights()
    assert (model.neck.mask_token == 3.0).all()


def test_wrong_encoder_is_refused(tmp_path):
    """An encoder that does not fit is an error, with or without a decoder, and nothing is loaded."""
    weights = make_fcmae().float().state_dict()
    del weights['backbone.stages.2.1.grn.gamma']
    with pytest.raises(ValueError, match='stages.2.1.grn.gamma'):
        start_from(weights, tmp_path)


def test_recipe_goes_on_in_one_line(tmp_path):
    """tools/train.py with a recipe of continued pretraining and a local file trains; --resume does not read it."""
    (tmp_path / 'images').mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{number}.png')
    torch.save(make_fcmae().float().state_dict(), tmp_path / 'start.pth')
    config = tmp_path / 'narrow.py'
    config.write_text(
        "_base_ = 'CONFIG'\nmodel = dict(backbone=dict(arch=dict(_delete_=True, **ARCH)), neck=dict(channels=12))\n"
        "optim_wrapper = dict(type='OptimWrapper')\n".replace('ARCH', repr(NARROW)).replace(
            'CONFIG', f'{__file__.rsplit("/tests/", 1)[0]}/configs/fcmae/fcmae_convnextv2-a_1xb64-100e_continue.py'
        )
    )
    options = [
        f'model.init_cfg.checkpoint={tmp_path / "start.pth"}',
        f'train_dataloader.dataset.data_root={tmp_path / "images"}',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'default_hooks.checkpoint.interval=1',
        'optim_wrapper.optimizer.lr=0.0',
        'optim_wrapper.accumulative_counts=1',
    ]

    def run(epochs, *arguments):
        given = [str(config), '--work-dir', str(tmp_path / 'work'), *arguments, '--cfg-options', *options]
        run_tool(train, parse_train_args([*given, f'train_cfg.max_epochs={epochs}']))

    run(1)
    found, start = load_file(str(tmp_path / 'work/epoch_1.pth'))['state_dict'], load_file(str(tmp_path / 'start.pth'))
    assert all(torch.equal(found[name], value) for name, value in start.items())
    (tmp_path / 'start.pth').unlink()
    run(2, '--resume')
    assert (tmp_path / 'work/epoch_2.pth').exists()
