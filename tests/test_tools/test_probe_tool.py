"""``tools/probe.py`` gives a checkpoint the scores that the hooks gave the model that it came from."""

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from small_models import NARROW

from mmconvnextv2.commands.probe import parse_args, probe, probes_of
from mmconvnextv2.commands.run_tool import run_tool

SIDE = 64


@pytest.fixture
def labelled(tmp_path):
    """Noise of two strengths: labels of its halves, and folders of two classes."""
    random = np.random.default_rng(0)
    for part in ('train', 'val'):
        folders = [tmp_path / 'street' / kind / part for kind in ('images', 'labels')]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(4):
            labels = np.zeros((SIDE, SIDE), np.uint8)
            labels[:, SIDE // 2 :] = 1
            pixels = random.normal(128, 5 + 60 * labels[..., None], (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folders[0] / f'{number}.png'), pixels)
            cv2.imwrite(str(folders[1] / f'{number}.png'), labels)
    for strength in (5, 60):
        folder = tmp_path / 'classes' / f'noise{strength}'
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = random.normal(128, strength, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f'{number}.png'), pixels)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path):
    """A narrow FCMAE with another normalisation than the default would be, and its file."""
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='FCMAE',
            data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False),
            neck=dict(type='FCMAEDecoder', channels=8),
            head=dict(type='FCMAEHead'),
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'fcmae.pth')
    return model.eval(), str(tmp_path / 'fcmae.pth')


def test_scores_are_those_of_the_hooks(labelled, checkpoint, capsys):
    """For a checkpoint of FCMAE, mIoU, neighbours and the linear classifier are to the last digit what the hooks find
    with the model itself, and other weights have other scores."""
    model, path = checkpoint
    given = ['--segment', str(labelled / 'street'), '--classify', str(labelled / 'classes'), '--size', '64', '--k', '2']
    args = parse_args([*given, '--batch-size', '3', '--model', 'mine', path, '--model', 'other', 'atto', 'random'])
    expected = {name: score for one in probes_of(args) for name, score in one.evaluate(model).items()}
    run_tool(probe, args)
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[-4].split('|')[1:-1]] == ['model', *expected]
    mine, other = ([cell.strip() for cell in line.split('|')[1:-1]] for line in lines[-2:])
    assert mine == ['mine', *(f'{score:.2f}' for score in expected.values())] and mine[1:] != other[1:]
    assert 50 < expected['dense_mIoU'] < 100


def test_mistakes(labelled, checkpoint):
    """Nothing to evaluate on, and models without stages, are refused."""
    model = ['--model', 'mine', checkpoint[1]]
    with pytest.raises(SystemExit, match='give --segment DIR, --classify DIR or both'):
        run_tool(probe, parse_args(model))
    with pytest.raises(SystemExit, match='ResNet has no numbered stages'):
        run_tool(
            probe,
            parse_args(
                ['--segment', str(labelled / 'street'), '--model', 'r', 'mmpretrain:resnet18_8xb32_in1k', 'random']
            ),
        )
