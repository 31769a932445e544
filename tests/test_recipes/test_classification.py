"""Classification recipes hold the published settings, and a leaf of each kind trains and evaluates."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from PIL import Image
from small_models import NARROW

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.commands.train import parse_train_args, train

LEAVES = Path(__file__).parents[2] / 'configs' / 'classification'
FCMAE, FROM22K, TO22K = '{}_fcmae-ft_in1k-224', '{}_in22k-ft_in1k-{}', '{}_fcmae-ft_in22k-{}'
# Tables 9 to 13 of arXiv 2301.00808 as printed, except for the base learning rate of B and L, the official code's.
# Table 12 holds at 384, too: section 5 trains on ImageNet-22K at that size.
# Base lr (a batch of 256), batch, weight decay, layer decay, its type, drop path, epochs, warm-up, smoothing, mixup,
# cutmix, EMA.
SINGLE, GROUP, NO_LAYER_DECAY = 'layer_wise', 'group_wise', None
PUBLISHED = {
    FCMAE.format('a'): (2e-4, 1024, 0.3, 0.9, SINGLE, 0.1, 600, 0, 0.2, 0, 0, 0.9999),
    FCMAE.format('f'): (2e-4, 1024, 0.05, 0.9, SINGLE, 0, 600, 0, 0.2, 0.3, 0.3, 0.9999),
    FCMAE.format('p'): (2e-4, 1024, 0.3, 0.9, SINGLE, 0, 600, 0, 0.2, 0.3, 0.3, 0.9999),
    FCMAE.format('n'): (2e-4, 1024, 0.3, 0.9, SINGLE, 0.1, 600, 0, 0.2, 0.5, 0.5, 0.9999),
    FCMAE.format('t'): (8e-4, 1024, 0.05, 0.9, SINGLE, 0.2, 300, 40, 0.1, 0.8, 1, 0.9999),
    FCMAE.format('b'): (6.25e-4, 1024, 0.05, 0.6, GROUP, 0.1, 100, 20, 0.1, 0.8, 1, 0.9999),
    FCMAE.format('l'): (6.25e-4, 1024, 0.05, 0.6, GROUP, 0.2, 100, 20, 0.1, 0.8, 1, 0.9999),
    FCMAE.format('h'): (1.25e-3, 1024, 0.05, 0.75, SINGLE, 0.3, 50, 10, 0.1, 0.8, 1, 0.9999),
    TO22K.format('n', 224): (2.5e-4, 4096, 0.05, 0.9, SINGLE, 0, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('n', 384): (2.5e-4, 4096, 0.05, 0.9, SINGLE, 0, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('t', 224): (2.5e-4, 4096, 0.05, 0.9, SINGLE, 0, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('t', 384): (2.5e-4, 4096, 0.05, 0.9, SINGLE, 0, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('b', 224): (2.5e-4, 4096, 0.05, 0.8, GROUP, 0.1, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('b', 384): (2.5e-4, 4096, 0.05, 0.8, GROUP, 0.1, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('l', 224): (2.5e-4, 4096, 0.05, 0.8, GROUP, 0.1, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('l', 384): (2.5e-4, 4096, 0.05, 0.8, GROUP, 0.1, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('h', 224): (2.5e-4, 4096, 0.05, 0.8, SINGLE, 0.3, 90, 5, 0.1, 0.8, 1, None),
    TO22K.format('h', 384): (2.5e-4, 4096, 0.05, 0.8, SINGLE, 0.3, 90, 5, 0.1, 0.8, 1, None),
    FROM22K.format('n', 224): (2.5e-5, 512, 1e-8, 0.9, SINGLE, 0.1, 90, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('n', 384): (2.5e-5, 512, 1e-8, 0.9, SINGLE, 0.1, 90, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('t', 224): (2.5e-5, 512, 1e-8, 0.9, SINGLE, 0.1, 90, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('t', 384): (2.5e-5, 512, 1e-8, 0.9, SINGLE, 0.1, 90, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('b', 224): (2.5e-5, 512, 1e-8, 0.8, GROUP, 0.2, 30, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('b', 384): (2.5e-5, 512, 1e-8, 0.8, GROUP, 0.2, 30, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('l', 224): (2.5e-5, 512, 1e-8, 0.8, GROUP, 0.3, 30, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('l', 384): (2.5e-5, 512, 1e-8, 0.8, GROUP, 0.3, 30, 0, 0.1, 0, 0, 0.9999),
    FROM22K.format('h', 384): (2.5e-5, 512, 1e-8, 0.85, SINGLE, 0.5, 30, 0, 0.1, 0, 0, None),
    FROM22K.format('h', 512): (2.5e-5, 512, 1e-8, 0.85, SINGLE, 0.5, 30, 0, 0.1, 0, 0, None),
    'b_supervised_in1k-224': (2.5e-4, 4096, 0.05, 1.0, NO_LAYER_DECAY, 0.5, 300, 20, 0.1, 0.8, 1, 0.9999),
    'l_supervised_in1k-224': (2.5e-4, 4096, 0.05, 1.0, NO_LAYER_DECAY, 0.5, 300, 20, 0.1, 0.8, 1, 0.9999),
}
PROBES = ('a_linear-probe_in1k-224', 'b_linear-probe_in1k-224')
ARCHS = dict(a='atto', f='femto', p='pico', n='nano', t='tiny', b='base', l='large', h='huge')


@lru_cache(None)
def load(name):
    return Config.fromfile(str(LEAVES / f'convnextv2-{name}.py'))


def transform(pipeline, kind):
    return next((step for step in pipeline if step['type'] == kind), None)


def fitted_schedule(cfg):
    """(epochs, warm-up, final factor) of the schedule over the whole training."""
    warmup = [step for step in cfg.param_scheduler if step.type == 'LinearLR']
    cosine = cfg.param_scheduler[-1]
    assert cosine.type == 'CosineAnnealingLR' and all(step.convert_to_iter_based for step in cfg.param_scheduler)
    end = warmup[0].end if warmup else 0
    assert len(cfg.param_scheduler) == len(warmup) + 1 and cosine.get('begin', 0) == end
    assert cosine.get('end', cfg.train_cfg.max_epochs) == cfg.train_cfg.max_epochs
    assert all(step.start_factor <= 1e-6 for step in warmup)
    return cfg.train_cfg.max_epochs, end, cosine.get('eta_min_ratio', 0.0)


def test_every_leaf_is_in_the_table():
    """No recipe escapes the comparison below: leaves and rows are the same set."""
    assert {leaf.stem[len('convnextv2-') :] for leaf in LEAVES.glob('convnextv2-*.py')} == {*PUBLISHED, *PROBES}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_settings(name):
    """Optimizer, decay, regularisation, schedule and EMA of a recipe are the printed ones; ranks mix differently."""
    base_lr, batch, weight_decay, decay, kind, drop_path, *row = PUBLISHED[name]
    epochs, warmup, smoothing, mixup, cutmix, ema = row
    cfg = load(name)
    lr = base_lr * batch / 256
    assert cfg.model.backbone.arch == ARCHS[name[0]] and cfg.auto_scale_lr.base_batch_size == batch
    optimizer, paramwise = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg
    assert optimizer.type == 'AdamW' and tuple(optimizer.betas) == (0.9, 0.999)
    assert math.isclose(optimizer.lr, lr) and optimizer.weight_decay == weight_decay
    assert paramwise.decay_rate == decay and kind in (paramwise.decay_type, NO_LAYER_DECAY)
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert fitted_schedule(cfg) == (epochs, warmup, pytest.approx(1e-6 / lr))
    assert cfg.model.head.loss.label_smooth_val == smoothing
    augments = {step.type: step.alpha for step in cfg.model.get('train_cfg', {}).get('augments', [])}
    assert augments == ({'Mixup': mixup, 'CutMix': cutmix} if mixup else {})
    assert cfg.randomness.diff_rank_seed or not augments
    hooks = [HOOKS.build(dict(hook)) for hook in cfg.custom_hooks]
    assert [1 - hook.ema_cfg['momentum'] for hook in hooks if isinstance(hook, EMAHook)] == ([ema] if ema else [])
    assert cfg.optim_wrapper.type == 'BF16OptimWrapper' and 'clip_grad' not in cfg.optim_wrapper
    assert cfg.model.head.init_cfg.std == pytest.approx(0.02 if 'supervised' in name else 0.02 * 0.001)


@pytest.mark.parametrize('name', [*PUBLISHED, *PROBES])
def test_image_files(name):
    """Training crops have the recipe's size with RandAugment (9, 0.5) and random erasing 0.25; test images are centre
    crops of 7/8 of a 256-pixel edge at 224, and warped whole from 384 on. A probe crops and flips alone."""
    cfg, size = load(name), int(name.rsplit('-', 1)[1])
    train_steps = cfg.train_dataloader.dataset.pipeline
    crop = transform(train_steps, 'RandomResizedCrop')
    assert crop.scale == size and tuple(crop.crop_ratio_range) == (0.08, 1) and crop.interpolation == 'bicubic'
    assert transform(train_steps, 'RandomFlip').prob == 0.5
    augment, erasing = transform(train_steps, 'RandAugment'), transform(train_steps, 'RandomErasing')
    if name in PROBES:
        assert augment is None and erasing is None
    else:
        assert (augment.magnitude_level, augment.magnitude_std, augment.num_policies) == (9, 0.5, 2)
        assert erasing.erase_prob == 0.25 and erasing.mode == 'rand'
    assert cfg.train_dataloader.drop_last
    if 'ft_in22k' in name:
        assert cfg.val_dataloader is None and cfg.test_dataloader is None
        return
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        steps = loader.dataset.pipeline
        if size == 224:
            assert transform(steps, 'ResizeEdge').scale == 256 and transform(steps, 'CenterCrop').crop_size == 224
        else:
            assert tuple(transform(steps, 'Resize').scale) == (size, size) and not transform(steps, 'CenterCrop')


@pytest.mark.parametrize('name', [*PUBLISHED, *PROBES])
def test_data_and_start(name):
    """Class counts agree everywhere, and the weights come from the step before: FCMAE, or the same size's 22K run."""
    cfg, arch = load(name), ARCHS[name[0]]
    classes = 21841 if 'ft_in22k' in name else 1000
    assert {cfg.num_classes, cfg.model.head.num_classes, cfg.data_preprocessor.num_classes} == {classes}
    assert cfg.train_dataloader.dataset.type == ('ImageNet21k' if classes == 21841 else 'ImageNet')
    start = (cfg.model.backbone.init_cfg or {}).get('checkpoint')
    if 'supervised' in name:
        assert start is None
    elif '_in22k-ft' in name:
        run = load(TO22K.format(name[0], 224))
        assert start == f'work_dirs/convnextv2-{TO22K.format(name[0], 224)}/epoch_{run.train_cfg.max_epochs}.pth'
    else:
        assert start.endswith(f'/pt_only/convnextv2_{arch}_1k_224_fcmae.pt')


# ---- a leaf of each kind, run by tools/train.py on a tiny folder of images
CLASSES = ('checks', 'rings', 'stripes')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three classes of procedural images laid out as ImageNet, and FCMAE-like weights of a narrow backbone."""
    root, generator = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split, number in (('train', 2), ('val', 1)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(60 * label, 60 * label + 90, (48, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{index}.png')
    backbone = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=False)
    backbone.init_weights()
    torch.save(
        dict(state_dict={f'backbone.{name}': value for name, value in backbone.state_dict().items()}),
        root / 'fcmae.pth',
    )
    return root


def run(name, folder, work_dir, *more):
    """Train a narrow copy of a leaf for an epoch of two steps, as the tool does; returns the last state dict."""
    config = work_dir / 'narrow.py'
    base = LEAVES / f'convnextv2-{name}.py'
    config.write_text(
        f"_base_ = '{base}'\nmodel = dict(backbone=dict(arch=dict(_delete_=True, **{NARROW})), "
        'head=dict(in_channels=10))\n'
        'sizes = size = recipe = train_pipeline = test_pipeline = None\n'
    )  # printing them costs seconds
    loaders = ['train_dataloader'] if 'ft_in22k' in name else ['train_dataloader', 'val_dataloader']
    options = [
        f'visualizer.name={work_dir.name}',
        'model.head.num_classes=3',
        'data_preprocessor.num_classes=3',
        'train_cfg.max_epochs=1',
    ]
    for loader in loaders:
        options += [
            f'{loader}.dataset.data_root={folder}',
            f'{loader}.dataset.metainfo.classes={",".join(CLASSES)}',
            f'{loader}.num_workers=0',
            f'{loader}.persistent_workers=False',
            f'{loader}.pin_memory=False',
            f'{loader}.batch_size=3',
        ]
    if len(loaders) == 2:
        options += ['val_evaluator.topk=1']
    train(parse_train_args([str(config), '--work-dir', str(work_dir), '--cfg-options', *options, *more]))
    checkpoint = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    assert (work_dir / 'epoch_1.pth').is_file() and checkpoint['meta']['iter'] == 2
    return checkpoint


def scores(work_dir):
    return [
        line
        for path in work_dir.rglob('scalars.json')
        for line in path.read_text().splitlines()
        if 'accuracy/top1' in line
    ]


def moved(checkpoint, start):
    """Names of backbone weights that training changed."""
    given = torch.load(start, weights_only=False)['state_dict']
    new = checkpoint.get('ema_state_dict', checkpoint['state_dict'])  # beside averages in state_dict
    new = {name.replace('module.', '', 1): value for name, value in new.items()}
    return {name for name, value in given.items() if name.startswith('backbone.') and not torch.equal(new[name], value)}


def started_from(checkpoint, start):
    """Whether every matrix of the backbone is near that of ``start``, as after two steps; another draw is not."""
    given, new = torch.load(start, weights_only=False)['state_dict'], checkpoint['state_dict']
    matrices = [name for name, value in given.items() if name.startswith('backbone.') and value.ndim > 1]
    return all((new[name] - given[name]).norm() < 0.5 * given[name].norm() for name in matrices)


SMALL = [f'{split}_dataloader.dataset.pipeline.1.scale=64' for split in ('train', 'val')]
CROP = ['val_dataloader.dataset.pipeline.2.crop_size=64']


@pytest.mark.parametrize('name', [FCMAE.format('b'), 'b_supervised_in1k-224'])
def test_training_moves_every_weight(folder, tmp_path, name):
    """Two steps and an evaluation: a top-1 is logged, and a gradient has reached every matrix of the backbone, which
    started from the given weights where they are given."""
    more = [] if 'supervised' in name else [f'model.backbone.init_cfg.checkpoint={folder}/fcmae.pth']
    checkpoint = run(name, folder, tmp_path, *more, *SMALL, *CROP, 'param_scheduler=[]')
    assert scores(tmp_path)
    state = checkpoint['state_dict']
    matrices = {key for key in state if key.startswith('backbone.') and state[key].ndim > 1}
    assert len(matrices) == 19
    assert all(one['exp_avg'].any() for one in checkpoint['optimizer']['state'].values())
    if more:
        assert matrices <= moved(checkpoint, folder / 'fcmae.pth') and started_from(checkpoint, folder / 'fcmae.pth')


def test_probe_moves_its_classifier_alone(folder, tmp_path):
    """A probe evaluates, leaves the backbone and its final norm bit for bit, and trains the classifier."""
    name = 'b_linear-probe_in1k-224'
    checkpoint = run(name, folder, tmp_path, f'model.backbone.init_cfg.checkpoint={folder}/fcmae.pth', *SMALL, *CROP)
    state = checkpoint['state_dict']
    assert scores(tmp_path) and not moved(checkpoint, folder / 'fcmae.pth')
    assert (state['backbone.norm3.weight'] == 1).all() and (state['backbone.norm3.bias'] == 0).all()
    assert state['head.fc.bias'].any() and len(checkpoint['optimizer']['state']) == 4  # norm3 and fc alone


def test_imagenet22k_then_1k_at_384(folder, tmp_path):
    """The chain of the paper: FCMAE weights, 22K without evaluation, then 1K at 384 from that run's checkpoint."""
    first, second = tmp_path / 'first', tmp_path / 'second'
    first.mkdir(), second.mkdir()
    run(
        TO22K.format('b', 224),
        folder,
        first,
        f'model.backbone.init_cfg.checkpoint={folder}/fcmae.pth',
        'train_dataloader.dataset.pipeline.1.scale=64',
    )
    between = torch.load(first / 'epoch_1.pth', weights_only=False)
    assert not scores(first) and moved(between, folder / 'fcmae.pth') and started_from(between, folder / 'fcmae.pth')
    checkpoint = run(
        FROM22K.format('b', 384), folder, second, f'model.backbone.init_cfg.checkpoint={first}/epoch_1.pth'
    )
    assert scores(second) and moved(checkpoint, first / 'epoch_1.pth')
    assert started_from(checkpoint, first / 'epoch_1.pth')
