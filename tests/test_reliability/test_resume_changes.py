"""What changed between a checkpoint and the config that goes on is honoured and logged, or refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from real_runs import BATCH, IMAGES, last, make_config, train, write_images

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.runner import build_runner

PER_EPOCH = IMAGES // BATCH


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture(scope='module')
def half(images, tmp_path_factory):
    """The checkpoint after two of four epochs."""
    folder = tmp_path_factory.mktemp('half')
    train(
        make_config(images, folder, epochs=4, **{'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.by_epoch': True})
    )
    return (folder / 'last_checkpoint').read_text()


def go_on(half, folder, images, epochs=4, **options):
    """Resume a checkpoint under another config; return the runner and what it logged."""
    cfg = make_config(images, folder, epochs=epochs, load_from=half, resume=True, **options)
    runners = []
    run_tool(
        lambda args: runners.append(build_runner(cfg, whole=True)) or runners[0].train(),
        type('Arguments', (), dict(traceback=False)),
    )
    text = '\n'.join(path.read_text() for path in folder.rglob('*.log'))
    return runners[0], text


def rates(folder):
    """The learning rate logged at each iteration."""
    lines = [json.loads(line) for path in folder.rglob('scalars.json') for line in path.read_text().splitlines()]
    return {line['iter']: line['lr'] for line in lines if 'lr' in line}


LOG = {'default_hooks.logger.interval': 1}


def test_nothing_changed_says_nothing(images, half, tmp_path):
    """A run that goes on under its own config logs no change, and keeps the schedule of the checkpoint."""
    _, text = go_on(half, tmp_path, images, epochs=4)
    assert 'end: 2 epochs -> 4 epochs' in text and 'learning rate:' not in text and last(tmp_path)['meta']['iter'] == 12
    _, text = go_on((tmp_path / 'last_checkpoint').read_text(), tmp_path / 'again', images, epochs=4)
    assert 'changed since' not in text and 'there is nothing to train' in text


@pytest.mark.parametrize(
    'options, facts',
    [
        ({'optim_wrapper.optimizer.lr': 0.5}, True),
        ({'param_scheduler.1.eta_min': 0.01}, True),
        ({'optim_wrapper.optimizer.lr': 0.5}, False),  # a checkpoint of 0.1 holds its rates, and no schedule to compare
    ],
    ids=['rate', 'schedule', 'rate, as 0.1 wrote it'],
)
def test_a_changed_rate_is_honoured(images, half, tmp_path, options, facts):
    """The rates after resuming are those that an undisturbed run of the changed config has at the same iterations."""
    if not facts:
        content = torch.load(half, weights_only=False)
        del content['message_hub']['runtime_info']['training_facts']
        half = str(tmp_path / 'old.pth')
        torch.save(content, half)
    train(make_config(images, tmp_path / 'fresh', epochs=4, **options, **LOG))
    _, text = go_on(half, tmp_path / 'on', images, **options, **LOG)
    fresh, resumed = rates(tmp_path / 'fresh'), rates(tmp_path / 'on')
    assert sorted(resumed) == list(range(7, 13))
    np.testing.assert_allclose([resumed[step] for step in resumed], [fresh[step] for step in resumed], rtol=1e-6)
    assert 'changed since the checkpoint, and applied' in text


def test_a_changed_weight_decay_is_honoured(images, half, tmp_path):
    """Weight decay and betas are the config's after resuming, and the table says from what to what."""
    runner, text = go_on(
        half,
        tmp_path,
        images,
        **{'optim_wrapper.optimizer.weight_decay': 0.3, 'optim_wrapper.optimizer.betas': (0.8, 0.9)},
    )
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {group['weight_decay'] for group in groups} in ({0.3}, {0.3, 0.0}) and groups[0]['betas'] == (0.8, 0.9)
    assert 'weight decay: 0.05 -> 0.3' in text and 'betas: ' in text


@pytest.mark.parametrize('num_images', [8, 20])
@pytest.mark.parametrize('facts', [True, False], ids=['noted', 'as 0.1 wrote it'])
def test_another_number_of_images_goes_on_by_epochs(half, images, tmp_path, num_images, facts):
    """After two of four epochs, fewer or more images train two whole epochs more."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(num_images):
        Image.new('RGB', (64, 64), (number * 9, 90, 90)).save(folder / f'{number:02}.png')
    if not facts:
        content = torch.load(half, weights_only=False)
        del content['message_hub']['runtime_info']['training_facts']
        half = str(tmp_path / 'old.pth')
        torch.save(content, half)
    runner, text = go_on(half, tmp_path / 'on', str(folder), **LOG)
    length = num_images // BATCH
    assert runner.iter == 4 * length and sorted(rates(tmp_path / 'on')) == list(range(2 * length + 1, 4 * length + 1))
    assert 'iterations in an epoch: 3' in text and f'-> {length}' in text


def test_another_number_of_images_in_the_middle_is_refused(images, half, tmp_path):
    """In the middle of an epoch, another number of images ends in one line with what to do."""
    content = torch.load(half, weights_only=False)
    content['meta'].update(iter=7)
    torch.save(content, tmp_path / 'middle.pth')
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(8):
        Image.new('RGB', (64, 64)).save(folder / f'{number}.png')
    with pytest.raises(SystemExit, match='from 3 to 2 iterations per epoch, and the checkpoint is from the middle'):
        go_on(str(tmp_path / 'middle.pth'), tmp_path / 'on', str(folder))


def forge_moments(state):
    state['state'][0]['exp_avg'] = torch.zeros(1)


@pytest.mark.parametrize(
    'change, said',
    [
        (forge_moments, r'has exp_avg of shape \(1,\) for a parameter of shape'),
        (
            lambda state: state['state'].update({0: dict(step=[1], exp_avg=torch.zeros(4, 3, 4, 4))}),
            'has step of shape',
        ),
        (lambda state: state['param_groups'].pop(), "of the checkpoint's optimizer do not match"),
        (lambda state: state.update(param_groups=[7]), "of the checkpoint's optimizer do not match"),
        (lambda state: state['param_groups'][0]['params'].pop(), "of the checkpoint's optimizer do not match"),
    ],
)
def test_moments_that_do_not_fit(images, half, tmp_path, change, said):
    """Moments of another shape, which a fused optimizer would write beyond, and other groups end in one line."""
    content = torch.load(half, weights_only=False)
    change(content['optimizer'])
    torch.save(content, tmp_path / 'forged.pth')
    with pytest.raises(SystemExit, match=said):
        go_on(str(tmp_path / 'forged.pth'), tmp_path / 'on', images)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(meta=7), 'holds meta as int, expected dict'),
        (dict(message_hub=[1]), 'holds message_hub as list'),
        (dict(meta=dict(epoch='1', iter=1)), 'holds meta.epoch as str'),
        (dict(optimizer=[1]), 'holds optimizer as list'),
        (dict(message_hub=dict(log_scalars=1)), 'holds message_hub.log_scalars as int'),
        (dict(param_schedulers=3), 'holds param_schedulers as int'),
        (dict(meta={}), 'holds only weights, not the training state'),
    ],
)
def test_misshapen_checkpoints(images, half, tmp_path, change, said):
    """Parts of another form than mmengine writes end in one line that names the part."""
    torch.save({**torch.load(half, weights_only=False), **change}, tmp_path / 'forged.pth')
    with pytest.raises(SystemExit, match=said):
        go_on(str(tmp_path / 'forged.pth'), tmp_path / 'on', images)
