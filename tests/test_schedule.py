"""Schedules follow the length of a run, and the plan says what it will do."""

import math
from glob import glob
from pathlib import Path

import pytest
import torch
from leaf_configs import read_leaf
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded
from mmconvnextv2.engine.schedule import fit_schedule, settle_iterations, warmup_iterations
from mmconvnextv2.utils.errors import UserError

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(Path(leaf) for leaf in glob(str(CONFIGS / '*' / '*.py')) if Path(leaf).parent.name != '_base_')


def rates_of(cfg, per_epoch, lr=1.0):
    """Return the learning rate at every iteration, by MMEngine's own schedulers, stepped as its hook does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    length = cfg.train_cfg.get('max_epochs', 0) * per_epoch or cfg.train_cfg.max_iters
    defaults = dict(optimizer=OptimWrapper(optimizer), epoch_length=per_epoch)
    schedulers = []
    for one in cfg.param_scheduler:
        end = cfg.train_cfg.max_epochs if one.get('by_epoch', True) else length
        schedulers.append(PARAM_SCHEDULERS.build({'end': end, **one}, default_args=defaults))
    rates = []
    for iteration in range(length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or not (iteration + 1) % per_epoch:
                scheduler.step()
    return rates


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: f'{leaf.parent.name}/{leaf.stem}')
def test_published_schedules_stay(leaf):
    """At the length of a recipe nothing is scaled."""
    cfg = read_leaf(leaf)
    before = cfg.param_scheduler
    assert fit_schedule(cfg) is None and cfg.param_scheduler == before


def test_pretraining_shortened_by_one_override():
    """10 of 800 epochs: half an epoch of warm-up, then the whole cosine, as computed by hand."""
    cfg = read_leaf(str(CONFIGS / 'fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'))
    cfg.train_cfg.max_epochs = 10
    assert '800 epochs was scaled to 10' in fit_schedule(cfg)
    rates = rates_of(cfg, per_epoch=20)
    assert rates[0] == pytest.approx(1e-4) and rates[10] == pytest.approx(1.0) == max(rates)
    expected = [(1 + math.cos(math.pi * step / 190)) / 2 for step in range(190)]
    assert rates[10:] == pytest.approx(expected, abs=1e-9)
    assert cfg.default_hooks.checkpoint.interval == 10 and cfg.train_cfg.max_epochs == 10


def test_longer_runs_stretch_the_schedule():
    """Twice the epochs: the warm-up is twice as long, and the cosine ends with the run."""
    cfg = read_leaf(str(CONFIGS / 'fcmae/fcmae_convnextv2-a_64xb64-800e_in1k.py'))
    cfg.train_cfg.max_epochs = 1600
    fit_schedule(cfg)
    assert [one['end'] for one in cfg.param_scheduler] == [80, 1600]


@pytest.mark.parametrize('epochs, milestones', [(12, [64, 88]), (3, [16, 22]), (5, [27, 37])])
def test_milestones_fall_inside_the_run(epochs, milestones):
    """Steps at 8 and 11 of 12 epochs fall at two thirds and eleven twelfths of any run, to the iteration."""
    cfg = read_leaf(str(CONFIGS / 'mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py'))
    cfg.train_cfg.max_epochs = epochs
    fit_schedule(cfg)
    settle_iterations(cfg.param_scheduler, 8, 8 * epochs)
    rates = rates_of(cfg, per_epoch=8)
    drops = [step for step in range(10, 8 * epochs) if rates[step] < 0.5 * rates[step - 1]]
    assert drops == milestones and rates[-1] == pytest.approx(0.01)


def test_warmup_of_few_images():
    """32 images in batches of 2: 500 warm-up iterations of 192 become 19; COCO's share stays as published."""
    cfg = read_leaf(str(CONFIGS / 'mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py'))
    assert 'warm-up of 500 iterations was cut to 19' in settle_iterations(cfg.param_scheduler, 16, 192)
    rates = rates_of(cfg, per_epoch=16)
    assert rates[17] < 0.99 and rates[18:21] == pytest.approx([1.0] * 3)
    assert warmup_iterations(cfg.param_scheduler, 16) == 19
    coco = read_leaf(str(CONFIGS / 'mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py'))
    assert settle_iterations(coco.param_scheduler, 7330, 87960) is None and coco.param_scheduler[0]['end'] == 500


def test_a_published_share_of_epochs_is_kept():
    """The linear probe warms up for 10 of 90 epochs: 10 epochs have a ninth of warm-up too, which no cap shortens."""
    cfg = read_leaf(str(CONFIGS / 'classification/convnextv2-a_linear-probe_in1k-224.py'))
    cfg.train_cfg.max_epochs = 10
    fit_schedule(cfg)
    assert settle_iterations(cfg.param_scheduler, 9, 90) is None
    assert warmup_iterations(cfg.param_scheduler, 9) == 10


@pytest.mark.parametrize(
    'config, right, wrong',
    [
        ('small/mask-rcnn_convnextv2-a_small.py', 'max_iters', 'max_epochs'),
        ('mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py', 'max_epochs', 'max_iters'),
    ],
)
def test_the_other_unit_is_an_error_that_names_the_right_one(config, right, wrong):
    """``max_epochs`` of a recipe that counts iterations, and the reverse, end in one line, not in a wrong length."""
    cfg = read_leaf(str(CONFIGS / config))
    cfg.train_cfg[wrong] = 3
    with pytest.raises(UserError, match=f'train_cfg.{wrong}=3: this recipe is counted by train_cfg.{right}'):
        fit_schedule(cfg)


def test_runs_counted_in_iterations():
    """800 of UperNet's 160k iterations: 8 of warm-up, a linear decay to the end, an evaluation and a checkpoint."""
    cfg = read_leaf(str(CONFIGS / 'upernet/upernet_convnextv2-a_160k_ade20k-512x512.py'))
    cfg.train_cfg.max_iters = 800
    fit_schedule(cfg)
    rates = rates_of(cfg, per_epoch=10)
    assert rates[6] < 0.99 and rates[7:9] == pytest.approx([1.0] * 2) and rates[404] == pytest.approx(0.5, abs=2e-3)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 80


def test_schedules_that_are_written_on_purpose_stay():
    """``fit_schedule=False``, schedulers without an end, and a constant rate after a warm-up are left as they are."""
    cfg = read_leaf(str(CONFIGS / 'fcmae/fcmae_convnextv2-a_64xb64-800e_in1k.py'))
    cfg.train_cfg.max_epochs, cfg.fit_schedule = 10, False
    assert fit_schedule(cfg) is None
    for schedulers in (
        [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5)],
        [dict(type='LinearLR', start_factor=0.1, end=5), dict(type='CosineAnnealingLR', begin=5, T_max=20)],
    ):
        cfg = Config(dict(train_cfg=dict(max_epochs=30), param_scheduler=schedulers))
        assert fit_schedule(cfg) is None


def test_lengths_that_are_no_numbers_are_refused():
    """A run of no epochs ends in one line."""
    with pytest.raises(ValueError, match='train_cfg.max_epochs=0: expected a whole number of at least 1'):
        fit_schedule(Config(dict(train_cfg=dict(max_epochs=0))))


@pytest.fixture(scope='module')
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plan')
    make_embedded(str(folder / 'data'), EmbeddedSpec(unlabelled=12, train=8, val=4, size=64))
    return folder


def plan_of(folder, config, capsys, *options):
    args = [str(CONFIGS / config), '--plan', '--work-dir', str(folder / 'run'), '--cfg-options', *options]
    train(parse_train_args(args))
    printed = capsys.readouterr()
    assert not (folder / 'run').exists()
    return (printed.out + printed.err).partition('plan\n')[2]


def test_plan_of_pretraining(embedded, capsys):
    """The plan counts what the run would do, warns of what cannot work, and writes nothing."""
    root = f'train_dataloader.dataset.data_root={embedded / "data" / "unlabelled"}'
    config = 'fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py'
    said = plan_of(embedded, config, capsys, root, 'train_dataloader.batch_size=4', 'train_cfg.max_epochs=10')
    assert '12 images, batch 4 = 4 images per step, 3 iterations per epoch' in said
    assert '10 epochs = 30 iterations' in said
    assert 'warm-up 2 iterations' in said, said
    assert 'peak 3.7e-05, AdamW' in said, said
    assert 'lr is for batches of 64 images, this run takes 4 per step: add --auto-scale-lr' in said
    assert '800 epochs was scaled to 10 epochs' in said and len(said.strip().splitlines()) <= 9


@pytest.mark.parametrize(
    'options, warning',
    [
        (['fit_schedule=False', 'param_scheduler.0.end=8'], 'the warm-up takes 24 of 60 iterations'),
        (['default_hooks.checkpoint.max_keep_ckpts=-1', 'train_cfg.max_epochs=9000'], 'checkpoints take'),
        (
            ['auto_scale_lr.enable=True', 'optim_wrapper.optimizer.lr=1e-5'],
            '--auto-scale-lr leaves a peak lr of 6.3e-07',
        ),
        (
            ['optim_wrapper.accumulative_counts=4'],
            '12 images are fewer than one step of 16: set train_dataloader.batch_size or optim_wrapper.',
        ),
    ],
)
def test_plan_warns(embedded, capsys, options, warning):
    """Each thing that cannot work is one line with its remedy."""
    root = f'train_dataloader.dataset.data_root={embedded / "data" / "unlabelled"}'
    given = (root, 'train_dataloader.batch_size=4', 'train_cfg.max_epochs=20', 'default_hooks.checkpoint.interval=1')
    said = plan_of(embedded, 'fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py', capsys, *given, *options)
    assert f'WARNING: {warning}' in said
