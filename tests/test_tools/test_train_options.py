"""The flags of ``tools/train.py`` that switch on trackers, weight averaging, early stopping and compilation."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmconvnextv2 import CompileBackboneHook
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.train import apply_train_args, parse_train_args
from mmconvnextv2.commands.train_flags import add_tracker
from mmconvnextv2.engine.hooks.early_stopping import find_metric

ROOT = Path(__file__).parents[2]
EVERY_ITERATION = 'default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1', 'train_cfg.val_interval=1'


@METRICS.register_module()
class DictatedScore(BaseMetric):
    """The scores that the test sets, one per evaluation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'dictated/mIoU': next(self.scores)}


@HOOKS.register_module()
class RecordRawWeights(Hook):
    """Copies of the trained weights after each iteration, taken before anything averages them."""

    priority = 'VERY_HIGH'
    raw = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.raw.append({name: value.detach().clone() for name, value in runner.model.named_parameters()})


def logged(work_dir):
    """Read the last run's logged dicts."""
    path = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tensorboard_holds_what_is_logged(tools, tmp_path):
    """TensorBoard's own reader finds each iteration's loss and the evaluation's mIoU of scalars.json in the events,
    and scalars.json is still written."""
    tools.train('upernet', tmp_path, 'train_cfg.max_iters=2', *EVERY_ITERATION, arguments=['--tensorboard'])
    events = EventAccumulator(str(next(tmp_path.rglob('events.out*')).parent))
    events.Reload()
    for key in ('loss', 'mIoU'):
        wanted = [(entry['step'], entry[key]) for entry in logged(tmp_path) if key in entry]
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert len(found) == 2 and [step for step, _ in found] == [step for step, _ in wanted]
        torch.testing.assert_close([value for _, value in found], [value for _, value in wanted])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain', None])
def test_a_tracker_joins_those_there_are(scope):
    """Whatever visualizer a scope has, and where it has none, a tracker is added once and the others stay."""
    cfg = Config(dict(visualizer=dict(type=f'{scope}.Some', line_width=3)) if scope else {})
    for _ in range(2):
        add_tracker(cfg, '--tensorboard', 'TensorboardVisBackend', 'tensorboard')
    assert [one['type'] for one in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
    assert cfg.visualizer.get('line_width') == (3 if scope else None)


@pytest.mark.slow
def test_wandb(tools, tmp_path):
    """Without the package the run ends in one line that says how to install it, before anything is built. With it, and
    WANDB_MODE=offline, the loss of scalars.json is in the run's own file."""
    run = subprocess.run(
        [
            sys.executable,
            'tools/train.py',
            tools.configs['upernet'],
            '--wandb',
            '--work-dir',
            str(tmp_path),
            '--cfg-options',
            *tools.options('upernet'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'WANDB_MODE': 'offline'},
    )
    if find_spec('wandb') is None:
        assert run.stderr.splitlines()[-1] == "error: --wandb needs the package 'wandb': pip install wandb"
        assert run.returncode == 1 and not list(tmp_path.iterdir())
        return
    assert run.returncode == 0, run.stderr[-2000:]
    content = next(tmp_path.rglob('*.wandb')).read_bytes()
    loss = next(entry['loss'] for entry in logged(tmp_path) if 'loss' in entry)
    assert b'loss' in content and repr(loss).encode() in content


def average(raw, momentum, start=None):
    """Return the moving average from its definition; it begins at the first weights."""
    means = start or {name: value.double() for name, value in raw[0].items()}
    for weights in raw[0 if start else 1 :]:
        means = {name: (1 - momentum) * mean + momentum * weights[name].double() for name, mean in means.items()}
    return means


@pytest.mark.slow
def test_ema_is_the_average_of_the_weights(tools, tmp_path):
    """With --ema 0.25 a checkpoint holds, as the model's weights, 0.75 of the last average and 0.25 of the newest
    weights, and the newest beside them; a resumed run goes on from both, and tools/test.py finds the mIoU that training
    found."""
    options = ['param_scheduler=None', *EVERY_ITERATION, 'default_hooks.recorder.type=RecordRawWeights']
    RecordRawWeights.raw.clear()
    tools.train('upernet', tmp_path, *options, 'train_cfg.max_iters=3', arguments=['--ema', '0.25'])
    tools.train('upernet', tmp_path, *options, 'train_cfg.max_iters=4', arguments=['--ema', '0.25', '--resume'])
    raw = RecordRawWeights.raw
    assert len(raw) == 4
    content = load_file(tmp_path / 'iter_4.pth')
    for name, mean in average(raw, 0.25).items():
        torch.testing.assert_close(content['state_dict'][name].double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(content['ema_state_dict'][f'module.{name}'], raw[-1][name], rtol=0, atol=0)
    assert any((raw[-1][name] - raw[0][name]).abs().max() > 1e-4 for name in raw[0])
    tools.test('upernet', tmp_path / 'iter_4.pth', tmp_path / 'test')
    tested = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text().splitlines()[-1])
    assert tested['mIoU'] == [entry['mIoU'] for entry in logged(tmp_path) if 'mIoU' in entry][-1]


def test_ema_counts_optimizer_steps(tools):
    """Accumulated forwards make one average, a recipe's own average is changed and not doubled, and a decay instead of
    the momentum is refused with the right number."""

    def hooks(*arguments, **options):
        cfg = Config(dict(optim_wrapper=dict(accumulative_counts=4), **options))
        apply_train_args(cfg, parse_train_args(['a.py', *arguments]))
        return cfg.custom_hooks

    (hook,) = hooks('--ema')
    assert (hook.type, hook.momentum, hook.interval) == ('EMAHook', 1e-4, 4)
    (own,) = hooks('--ema', '0.001', custom_hooks=[dict(type='EMAHook', momentum=1e-4, begin_iter=7)])
    assert own == dict(type='EMAHook', momentum=0.001, begin_iter=7)
    with pytest.raises(ValueError, match='--ema=0.999: .* for a decay of 0.999 pass 0.001'):
        hooks('--ema', '0.999')
    with pytest.raises(ValueError, match='FSDP2Strategy'):
        hooks('--ema', strategy=dict(type='FSDP2Strategy'))


def dictate(*scores):
    return (
        'val_evaluator._delete_=True',
        'val_evaluator.type=DictatedScore',
        f'val_evaluator.scores=[{",".join(map(str, scores))}]',
    )


def validations(work_dir):
    return [
        entry['dictated/mIoU']
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for entry in map(json.loads, path.read_text().splitlines())
        if 'dictated/mIoU' in entry
    ]


@pytest.mark.slow
def test_early_stop(tools, tmp_path):
    """Training ends after two evaluations in a row that are not above the best; the smallest gain starts the count
    again, an equal score does not; and a resumed run remembers the best score."""
    tools.train(
        'upernet',
        tmp_path / 'a',
        *dictate(10.0, 9.0, 10.0001, 10.0001, 3.0, 99.0),
        'train_cfg.max_iters=6',
        *EVERY_ITERATION,
        arguments=['--early-stop', 'mIoU', '2'],
    )
    assert validations(tmp_path / 'a') == [10.0, 9.0, 10.0001, 10.0001, 3.0]
    tools.train(
        'upernet',
        tmp_path / 'b',
        *dictate(50.0, 60.0),
        'train_cfg.max_iters=2',
        *EVERY_ITERATION,
        arguments=['--early-stop', 'mIoU', '2'],
    )
    tools.train(
        'upernet',
        tmp_path / 'b',
        *dictate(40.0, 45.0, 99.0),
        'train_cfg.max_iters=6',
        *EVERY_ITERATION,
        arguments=['--early-stop', 'mIoU', '2', '--resume'],
    )
    assert validations(tmp_path / 'b') == [50.0, 60.0, 40.0, 45.0]


def test_early_stop_explains(tools, tmp_path):
    """A metric that the evaluation does not give, one without a known direction, a wrong patience and a config without
    an evaluation each end in one line that says what to do."""
    for task, arguments, message in (
        ('upernet', ['mIou'], "metric 'mIou': did you mean 'mIoU'\\? available are aAcc, mIoU, mAcc"),
        ('upernet', ['sharpness'], "early stopping on 'sharpness': whether .*rule='greater'"),
        ('upernet', ['mIoU', 'soon'], '--early-stop mIoU soon: expected METRIC, or METRIC PATIENCE'),
        ('fcmae', ['loss'], '--early-stop loss: the config has no evaluation'),
    ):
        with pytest.raises(SystemExit, match=f'^error: {message}'):
            tools.train(task, tmp_path, arguments=['--early-stop', *arguments])


def test_metrics_are_found_by_their_last_part():
    """A full name wins over a last part; a last part that several metrics share is refused."""
    assert find_metric('bbox_mAP', ['coco/bbox_mAP', 'coco/segm_mAP']) == 'coco/bbox_mAP'
    assert find_metric('top1', ['top1', 'accuracy/top1']) == 'top1'
    with pytest.raises(ValueError, match='a/top1, b/top1'):
        find_metric('top1', ['a/top1', 'b/top1'])


COMPILED = []


SHAPES, OUTPUTS = [], []


@torch._dynamo.register_backend
def remembering(graph, inputs):
    """Run a graph unchanged, and remember its operations and the shapes of its images and results."""
    graphs = [one.graph for one in graph.modules() if isinstance(one, torch.fx.GraphModule)]
    COMPILED.append({node.target for one in graphs for node in one.nodes if node.op == 'call_function'})
    tensors = [one for one in inputs if isinstance(one, torch.Tensor) and not isinstance(one, torch.nn.Parameter)]
    SHAPES.extend(tuple(one.shape[2:]) for one in tensors if one.shape[1:2] == (3,))
    OUTPUTS.append([tuple(node.meta['example_value'].shape) for node in graph.graph.output_node().args[0]])
    return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize('task', ['fcmae', 'upernet'])
def test_compiled_backbone_learns_the_same(tools, trained, tmp_path, task):
    """With --compile the backend gets graphs of the backbone and none with a loss, or for FCMAE one graph with the
    loss, and none of the evaluation; the first loss and the names in the checkpoint are those of the plain run."""
    COMPILED.clear()
    OUTPUTS.clear()
    torch._dynamo.reset()
    tools.train(task, tmp_path, 'default_hooks.logger.interval=1', arguments=['--compile', 'remembering'])
    # What linears become, in the fused operation and outside it
    multiplied = {torch.addmm, torch.baddbmm, torch.nn.functional.linear, torch._C._nn.linear}
    assert any(multiplied & set(graph) for graph in COMPILED)
    if task == 'fcmae':
        assert OUTPUTS == [[()]]
    else:
        assert not any('loss' in str(one) or 'cross_entropy' in str(one) for graph in COMPILED for one in graph)
    plain, compiled = (load_file(tools.last(folder, task))['state_dict'] for folder in (trained(task), tmp_path))
    assert plain.keys() == compiled.keys()
    losses = [[entry['loss'] for entry in logged(folder) if 'loss' in entry][0] for folder in (trained(task), tmp_path)]
    assert math.isclose(*losses, rel_tol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_images_of_many_sizes_fill_few_graphs(tools, tmp_path, monkeypatch):
    """From the second image size on, batches are padded to multiples of 128 pixels, in training only, and the log says
    so; images of one size are left as they are."""
    one = "dict(type='Resize', scale=(96, 96))"
    many = "dict(type='RandomResize', scale=[(64, 64), (300, 300)])"
    longer = ['train_cfg.max_epochs=6', 'train_cfg.val_interval=6', 'default_hooks.checkpoint.interval=6']
    base = tools.configs['mask-rcnn']
    for resize, places in ((one, {(96, 96)}), (many, None)):
        torch._dynamo.reset()
        SHAPES.clear()
        folder = tmp_path / str(places is None)
        folder.mkdir()
        (folder / 'sizes.py').write_text(
            f'_base_ = {base!r}\npipeline = [_base_.load, _base_.annotations, {resize}, _base_.pack]\n'
            'train_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
        )
        monkeypatch.setitem(tools.configs, 'mask-rcnn', str(folder / 'sizes.py'))
        tools.train('mask-rcnn', folder, *longer, arguments=['--compile', 'remembering'])
        [log] = folder.glob('*/*.log')
        assert ('batches are padded to multiples of 128' in log.read_text()) == (places is None)
        assert set(SHAPES) == places if places else {side % 128 for shape in SHAPES[1:] for side in shape} == {0}
    assert 1 < len(set(SHAPES)) == len(SHAPES)
    torch._dynamo.reset()


def test_compile_explains():
    """An unknown mode or backend, and a config that compiles the whole model, are refused; modes are inductor's."""
    cfg = Config(dict(compile=None))
    apply_train_args(cfg, parse_train_args(['a.py', '--compile', 'reduce-overhead']))
    assert cfg.custom_hooks == [dict(type='CompileBackboneHook', mode='reduce-overhead')]
    with pytest.raises(ValueError, match='bucket=100'):
        CompileBackboneHook(bucket=100)
    with pytest.raises(ValueError, match="mode='default'.*only inductor has modes, not 'eager'"):
        CompileBackboneHook('eager', mode='default')
    for compiled, arguments, message in (
        (None, ['--compile', 'fastest'], "--compile='fastest': expected one of the modes .*reduce-overhead.*inductor"),
        (True, ['--compile'], 'compile=True in the config'),
    ):
        with pytest.raises(ValueError, match=message):
            apply_train_args(Config(dict(compile=compiled)), parse_train_args(['a.py', *arguments]))


def test_seed_is_that_of_the_run():
    """``--seed`` becomes ``randomness.seed``, and other keys of ``randomness`` stay."""
    cfg = Config(dict(randomness=dict(seed=0, deterministic=True), optim_wrapper=dict()))
    apply_train_args(cfg, parse_train_args(['config.py', '--seed', '7']))
    assert cfg.randomness == dict(seed=7, deterministic=True)


@pytest.mark.parametrize(
    'cuda, own, wrapper', [(False, False, 'BF16'), (True, True, 'BF16'), (True, False, 'FP16')], ids=str
)
def test_amp_takes_what_the_device_has(cuda, own, wrapper, monkeypatch):
    """``--amp`` is bfloat16, except on a GPU that only emulates it, which torch's own question does not tell apart."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation or own)
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', loss_scale=1.0)))
    apply_train_args(cfg, parse_train_args(['config.py', '--amp']))
    assert cfg.optim_wrapper == dict(type=f'{wrapper}OptimWrapper')
