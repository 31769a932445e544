"""A pretraining run goes on in the other code: ours in the official layout, and the official one in ours."""

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from PIL import Image
from small_models import NARROW
from torch import nn

from mmconvnextv2.checkpoint.convert import convert_training_file
from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints, load_file

pytest.importorskip('mmpretrain')
from mmconvnextv2.checkpoint.training_state import (  # noqa: E402
    describe_weight_decay,
    read_recipe,
    training_from_canonical,
    training_to_canonical,
)

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
DEPTHS, CHANNELS, WIDTH = NARROW['depths'], NARROW['channels'], 12
CONFIG = f"""
custom_imports = dict(imports=['mmconvnextv2.pretrain'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='FCMAE', execution='packed',
    backbone=dict(type='ConvNeXtV2', arch={NARROW}, out_indices=(3, ),
                  out_norm=False),
    neck=dict(type='FCMAEDecoder', channels=12), head=dict(type='FCMAEHead'))
optim_wrapper = dict(
    type='OptimWrapper', constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0, custom_keys=dict(grn=dict(decay_mult=1.), mask_token=dict(decay_mult=1.))),
    optimizer=dict(type='AdamW', lr=0.01, betas=(0.9, 0.95), weight_decay=0.05))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, eta_min=0., convert_to_iter_based=True)]
"""


class Parameters(nn.Module):
    """Nothing but parameters and children, in the order given: a dotted name makes children as it goes."""

    def __init__(self, shapes):
        super().__init__()
        children = OrderedDict()
        for name, shape in shapes.items():
            head, _, rest = name.partition('.')
            if rest:
                children.setdefault(head, OrderedDict())[rest] = shape
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float64)))
        for head, inner in children.items():
            self.add_module(head, Parameters(inner))


def official_shapes():
    """Names, shapes and order of the official pretraining model, written out from its description: modules in the order
    in which they are made, a module's own parameters before those of its children."""
    shapes = OrderedDict(mask_token=(1, WIDTH, 1, 1))
    stem = 'encoder.downsample_layers.0'
    shapes.update(
        {
            f'{stem}.0.weight': (CHANNELS[0], 3, 4, 4),
            f'{stem}.0.bias': (CHANNELS[0],),
            f'{stem}.1.weight': (CHANNELS[0],),
            f'{stem}.1.bias': (CHANNELS[0],),
        }
    )
    for number in (1, 2, 3):
        name, before, after = f'encoder.downsample_layers.{number}', CHANNELS[number - 1], CHANNELS[number]
        shapes.update(
            {
                f'{name}.0.ln.weight': (before,),
                f'{name}.0.ln.bias': (before,),
                f'{name}.1.kernel': (4, before, after),
                f'{name}.1.bias': (1, after),
            }
        )
    for stage, (depth, width) in enumerate(zip(DEPTHS, CHANNELS)):
        for block in range(depth):
            name, wide = f'encoder.stages.{stage}.{block}', 4 * width
            shapes.update(
                {
                    f'{name}.dwconv.kernel': (49, width),
                    f'{name}.dwconv.bias': (1, width),
                    f'{name}.norm.ln.weight': (width,),
                    f'{name}.norm.ln.bias': (width,),
                    f'{name}.pwconv1.linear.weight': (wide, width),
                    f'{name}.pwconv1.linear.bias': (wide,),
                    f'{name}.pwconv2.linear.weight': (width, wide),
                    f'{name}.pwconv2.linear.bias': (width,),
                    f'{name}.grn.gamma': (1, wide),
                    f'{name}.grn.beta': (1, wide),
                }
            )
    shapes.update({'proj.weight': (WIDTH, CHANNELS[3], 1, 1), 'proj.bias': (WIDTH,)})
    shapes.update(
        {
            'decoder.0.dwconv.weight': (WIDTH, 1, 7, 7),
            'decoder.0.dwconv.bias': (WIDTH,),
            'decoder.0.norm.weight': (WIDTH,),
            'decoder.0.norm.bias': (WIDTH,),
            'decoder.0.pwconv1.weight': (4 * WIDTH, WIDTH),
            'decoder.0.pwconv1.bias': (4 * WIDTH,),
            'decoder.0.grn.gamma': (1, 1, 1, 4 * WIDTH),
            'decoder.0.grn.beta': (1, 1, 1, 4 * WIDTH),
            'decoder.0.pwconv2.weight': (WIDTH, 4 * WIDTH),
            'decoder.0.pwconv2.bias': (WIDTH,),
            'pred.weight': (3072, WIDTH, 1, 1),
            'pred.bias': (3072,),
        }
    )
    return shapes


def as_ours(official):
    """Our weights from official parameters, by plain indexing and differentiable, independent of the tables."""
    ours = {}
    for name, value in official.items():
        parts = name.split('.')
        if parts[0] == 'encoder':
            target = 'backbone.' + '.'.join(part for part in parts[1:] if part not in ('ln', 'linear'))
        else:
            target = {
                'mask': 'neck.mask_token',
                'proj': f'neck.{name}',
                'deco': f'neck.blocks.{name[8:]}',
                'pred': f'head.{name}',
            }[name[:4]]
        for theirs, mine in (('dwconv', 'depthwise_conv'), ('pwconv', 'pointwise_conv'), ('.kernel', '.weight')):
            target = target.replace(theirs, mine)
        if name.endswith('dwconv.kernel'):
            value = torch.stack(
                [torch.stack([value[column * 7 + row] for column in range(7)], -1) for row in range(7)], -2
            )[:, None]
        elif name.endswith('kernel'):
            value = torch.stack(
                [torch.stack([value[column * 2 + row].T for column in range(2)], -1) for row in range(2)], -2
            )
        elif name == 'pred.weight':
            value = value[:, :, 0, 0]
        elif name == 'mask_token' or '.grn.' in name or parts[-2] == 'dwconv' or (parts[-2] == '1' and value.ndim == 2):
            value = value.flatten() if name.endswith(('bias', 'gamma', 'beta', 'token')) else value
        ours[target] = value
    return ours


def official_optimizer(model):
    """AdamW as the official script is described to make it: vectors and ``.bias`` first, without decay."""
    plain = [value for name, value in model.named_parameters() if value.ndim == 1 or name.endswith('.bias')]
    rest = [value for name, value in model.named_parameters() if not (value.ndim == 1 or name.endswith('.bias'))]
    return torch.optim.AdamW(
        [dict(params=plain, weight_decay=0.0), dict(params=rest, weight_decay=0.05)],
        lr=0.01,
        betas=(0.9, 0.95),
        weight_decay=0.05,
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return str(path)


def make_both(config):
    """The official-like model and ours, in float64 and with the same random weights."""
    from mmpretrain.registry import MODELS

    cfg = Config.fromfile(config)
    official, ours = Parameters(official_shapes()), MODELS.build(cfg.model).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in official.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
    ours.load_state_dict(as_ours(dict(official.named_parameters())), strict=True)
    return official, ours, build_optim_wrapper(ours, cfg.optim_wrapper).optimizer


def loss_of(ours, step, weights=None):
    """The loss of a step's images, with other weights instead of the model's own if given."""
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    samples = [DataSample(metainfo=dict(visible_cells=torch.tensor(cells))) for cells in ([0, 3], [1, 2])]
    if weights is None:
        return ours.loss(images, samples)['loss']
    return torch.func.functional_call(ours, weights, (images, samples), dict(mode='loss'))['loss']


def train_official(official, ours, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(ours, step, as_ours(dict(official.named_parameters()))).backward()
        optimizer.step()


def train_ours(ours, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(ours, step).backward()
        optimizer.step()


def assert_equal_weights(official, ours):
    expected = as_ours(dict(official.named_parameters()))
    assert set(expected) == {name for name, _ in ours.named_parameters()}
    for name, value in ours.named_parameters():
        assert torch.allclose(value, expected[name], rtol=1e-12, atol=1e-12), name


def official_file(official, optimizer, path, epoch):
    torch.save(dict(model=official.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch), path)
    return load_file(str(path))


def test_official_run_goes_on_here(config, tmp_path):
    """Three steps there and three here end at the weights of six steps there, moments, weight decay and all."""
    official, ours, optimizer = make_both(config)
    theirs = official_optimizer(official)
    train_official(official, ours, theirs, range(3))
    checkpoint = training_to_canonical(official_file(official, theirs, tmp_path / 'a.pth', 0), read_recipe(config))
    ours.load_state_dict(checkpoint['state_dict'], strict=True)
    state = {key: value for key, value in checkpoint['optimizer'].items() if key in ('state', 'param_groups')}
    for group in state['param_groups']:
        group['lr'] = 0.01
    optimizer.load_state_dict(state)
    assert_equal_weights(official, ours)
    train_official(official, ours, theirs, range(3, 6))
    train_ours(ours, optimizer, range(3, 6))
    assert_equal_weights(official, ours)


def test_our_run_goes_on_there(config, tmp_path):
    """Three steps here and three there end at the weights of six steps here."""
    official, ours, optimizer = make_both(config)
    train_ours(ours, optimizer, range(3))
    torch.save(
        dict(meta=dict(epoch=1, iter=3), state_dict=ours.state_dict(), optimizer=optimizer.state_dict()),
        tmp_path / 'a.pth',
    )
    converted = training_from_canonical(load_file(str(tmp_path / 'a.pth')), read_recipe(config))
    assert list(converted['model']) == list(official_shapes()) and converted['epoch'] == 0
    official.load_state_dict(converted['model'], strict=True)
    theirs = official_optimizer(official)
    theirs.load_state_dict(converted['optimizer'])
    assert_equal_weights(official, ours)
    train_ours(ours, optimizer, range(3, 6))
    train_official(official, ours, theirs, range(3, 6))
    assert_equal_weights(official, ours)


def test_moments_survive_the_round_trip_bit_for_bit(config, tmp_path):
    """Official to ours and back gives the same file: weights, moments, step counts, groups and epoch."""
    official, ours, _ = make_both(config)
    theirs = official_optimizer(official)
    train_official(official, ours, theirs, range(2))
    before = official_file(official, theirs, tmp_path / 'a.pth', 1)
    checkpoint = training_to_canonical(before, read_recipe(config))
    assert checkpoint['meta'] == dict(epoch=2, iter=2)
    after = training_from_canonical(checkpoint, read_recipe(config))
    assert after['epoch'] == 1 and list(after['model']) == list(before['model'])
    assert all(torch.equal(after['model'][name], value) for name, value in before['model'].items())
    for one, other in zip(after['optimizer']['param_groups'], before['optimizer']['param_groups']):
        assert one['params'] == other['params'] and one['weight_decay'] == other['weight_decay']
    for number, state in before['optimizer']['state'].items():
        found = after['optimizer']['state'][number]
        assert found['step'] == state['step'] == 2
        assert all(torch.equal(found[kind], state[kind]) for kind in ('exp_avg', 'exp_avg_sq'))


def write_run_config(folder, epochs=2):
    """The shipped config for image folders with a narrow model, as a file; three iterations per epoch."""
    generator = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for number in range(7):
        pixels = generator.integers(0, 255, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 80), Image.BICUBIC).save(folder / 'images' / f'{number}.png')
    cfg = Config.fromfile('configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py')
    cfg.merge_from_dict(
        {
            'train_cfg.max_epochs': epochs,
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.pin_memory': False,
            'train_dataloader.dataset.data_root': str(folder / 'images'),
            'train_dataloader.dataset.pipeline.1.scale': 64,
            'model.neck.channels': WIDTH,
            'default_hooks.checkpoint': dict(interval=1, by_epoch=True, max_keep_ckpts=-1),
            'optim_wrapper.type': 'OptimWrapper',
            'optim_wrapper.optimizer.lr': 0.01,
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'param_scheduler.1.end': epochs,
            'log_level': 'ERROR',
        }
    )
    cfg.model.backbone.arch = NARROW
    cfg.custom_hooks = []
    cfg.dump(str(folder / 'run.py'))
    return str(folder / 'run.py')


def train(config, work_dir, **options):
    allow_mmengine_checkpoints()
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(work_dir=str(work_dir), **options))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_whole_run_goes_there_and_back(tmp_path):
    """A run of the shipped recipe that is stopped after an epoch, written for the official script, read back through
    the tool and resumed ends at the bits of the run that was never stopped: weights, moments, epoch, iteration and the
    learning rates of its schedule, which the official file does not hold."""
    config = write_run_config(tmp_path)
    whole = train(config, tmp_path / 'whole')
    there, back = str(tmp_path / 'official.pth'), str(tmp_path / 'back.pth')
    report = convert_training_file(str(tmp_path / 'whole' / 'epoch_1.pth'), there, 'official-sparse', config)
    assert 'moments of 81 parameters, epoch index 0' in report and '13 parameters (GRN, mask token)' in report
    assert load_file(there)['epoch'] == 0 and set(load_file(there)) == {'model', 'optimizer', 'epoch'}
    run = subprocess.run([sys.executable, TOOL, there, back, '--training', config], capture_output=True, text=True)
    assert run.returncode == 0 and 'epoch 1, iter 3' in run.stdout, run.stderr
    expected, found = load_file(str(tmp_path / 'whole' / 'epoch_1.pth')), load_file(back)
    assert [group['lr'] for group in found['optimizer']['param_groups']] == [
        group['lr'] for group in expected['optimizer']['param_groups']
    ]
    resumed = train(config, tmp_path / 'resumed', resume=True, load_from=back)
    assert resumed.iter == whole.iter == 6 and resumed.epoch == whole.epoch == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for one, other in zip(whole.optim_wrapper.param_groups, resumed.optim_wrapper.param_groups):
        assert one['lr'] == other['lr']


def test_the_schedule_follows_accumulation_and_epoch_length(config, tmp_path):
    """An official file counts optimizer steps; the place in the run is counted in iterations of the config."""
    official, ours, _ = make_both(config)
    theirs = official_optimizer(official)
    train_official(official, ours, theirs, range(4))
    content = official_file(official, theirs, tmp_path / 'a.pth', 1)
    assert training_to_canonical(content, read_recipe(config))['meta'] == dict(epoch=2, iter=4)
    recipe = read_recipe(config, {'optim_wrapper.accumulative_counts': 3})
    assert training_to_canonical(content, recipe)['meta'] == dict(epoch=2, iter=12)
    assert training_to_canonical(content, recipe, epoch_length=7)['meta'] == dict(epoch=2, iter=14)
    rates = [training_to_canonical(content, recipe, length)['optimizer']['param_groups'][0]['lr'] for length in (2, 50)]
    cosine = 0.01 * (1 + np.cos(np.pi / 3)) / 2  # one of three epochs after the warm-up
    assert rates[1] == pytest.approx(cosine, rel=0.02)
    with pytest.raises(ValueError, match=r'made \[4\] steps in 3 epochs: .*--epoch-length'):
        training_to_canonical({**content, 'epoch': 2}, recipe)


def test_old_files_count_steps_as_numbers(config, tmp_path):
    """A file of an old torch, with plain numbers for steps and bare groups behind ``module.``, goes on the same way."""
    official, ours, optimizer = make_both(config)
    theirs = official_optimizer(official)
    train_official(official, ours, theirs, range(2))
    content = official_file(official, theirs, tmp_path / 'a.pth', 0)
    expected = training_to_canonical(content, read_recipe(config))
    content['model'] = {f'module.{name}': value for name, value in content['model'].items()}
    for state in content['optimizer']['state'].values():
        state['step'] = int(state['step'])
    content['optimizer']['param_groups'] = [
        {key: group[key] for key in ('lr', 'betas', 'eps', 'weight_decay', 'amsgrad', 'params')}
        for group in content['optimizer']['param_groups']
    ]
    found = training_to_canonical(content, read_recipe(config))
    for number, state in expected['optimizer']['state'].items():
        assert all(torch.equal(found['optimizer']['state'][number][kind], value) for kind, value in state.items())
    optimizer.load_state_dict({key: found['optimizer'][key] for key in ('state', 'param_groups')})
    train_ours(ours, optimizer, [0])


def broken(content, change):
    content = {
        **content,
        'optimizer': dict(
            state=dict(content['optimizer']['state']),
            param_groups=[dict(g) for g in content['optimizer']['param_groups']],
        ),
    }
    change(content)
    return content


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: c.pop('optimizer'), r"holds model, optimizer and epoch; \['optimizer'\] missing"),
        (lambda c: c['optimizer']['state'].update({0: c['optimizer']['state'][80]}), 'are in another order'),
        (lambda c: c['optimizer']['param_groups'].pop(), r'has groups of \[\d+\] parameters, expected'),
        (lambda c: c['optimizer']['param_groups'][0].update(betas=(0.9, 0.999)), r'betas=\(0.9, 0.999\), the config'),
        (lambda c: c.update(model={**c['model'], 'extra.weight': torch.zeros(1)}), 'has groups of'),
        (lambda c: c.update(model={**c['model'], 'mask_token': torch.zeros(1, 3, 1, 1)}), 'are in another order'),
    ],
    ids=['no optimizer', 'swapped', 'one group', 'betas', 'extra', 'shape'],
)
def test_what_does_not_fit_is_refused(config, tmp_path, change, message):
    """Parts that are missing, moments in another order or of other shapes, and other hyperparameters raise."""
    official, ours, _ = make_both(config)
    theirs = official_optimizer(official)
    train_official(official, ours, theirs, range(1))
    content = official_file(official, theirs, tmp_path / 'a.pth', 0)
    with pytest.raises(ValueError, match=message):
        training_to_canonical(broken(content, change), read_recipe(config))


def test_other_models_and_halves_of_epochs_are_refused(config, tmp_path):
    """A config with another model, and a checkpoint from the middle of an epoch, raise and say what to do."""
    official, ours, optimizer = make_both(config)
    train_ours(ours, optimizer, range(1))
    content = dict(meta=dict(epoch=2, iter=5), state_dict=ours.state_dict(), optimizer=optimizer.state_dict())
    with pytest.raises(ValueError, match='after 5 iterations, in epoch 3: .*convert one saved at the end of an epoch'):
        training_from_canonical(content, read_recipe(config))
    content['meta'] = dict(epoch=1, iter=1)
    with pytest.raises(ValueError, match='does not fit the config: .*neck'):
        training_from_canonical(content, read_recipe(config, {'model.neck.channels': 16}))
    with pytest.raises(ValueError, match=r"\['optimizer'\] missing"):
        training_from_canonical(dict(meta={}, state_dict={}), read_recipe(config))
    torch.save(dict(state_dict=ours.state_dict()), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='not from canonical to canonical'):
        convert_training_file(str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth'), 'canonical', config)
    with pytest.raises(ValueError, match='must end in .pth'):
        convert_training_file(str(tmp_path / 'a.pth'), str(tmp_path / 'b.safetensors'), 'official-sparse', config)


def test_the_report_tells_whose_weight_decay(config):
    """GRN and the mask token are decayed there and not here by default; the report says with which options they are."""
    assert 'as in the official script' in describe_weight_decay(read_recipe(config))
    recipe = read_recipe(config, {'optim_wrapper.paramwise_cfg.custom_keys': dict(_delete_=True)})
    report = describe_weight_decay(recipe)
    assert report.startswith('13 parameters (GRN, mask token)') and 'custom_keys.grn.decay_mult=1' in report
