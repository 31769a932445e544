"""``tools/train.py`` and ``tools/test.py`` on a tiny data set train, evaluate, resume, and honour their arguments."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from sparse_reference import official_sparse_file

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands.test import parse_test_args
from mmconvnextv2.utils.config import load_config

ROOT = Path(__file__).parents[2]
METRICS = {'mask-rcnn': ('coco/bbox_mAP', 'coco/segm_mAP'), 'upernet': ('mIoU',)}


def scalars(work_dir):
    """Read the last run's logged dicts."""
    path = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def finite_metrics(work_dir, task):
    entries = [entry for entry in scalars(work_dir) if METRICS[task][0] in entry]
    assert entries and all(math.isfinite(entries[-1][key]) for key in METRICS[task]), entries


@pytest.mark.parametrize('task', ['mask-rcnn', 'upernet'])
def test_train_evaluates_and_test_repeats_it(tools, trained, tmp_path, task):
    """Training logs finite losses and metrics; test, from the checkpoint, finds the same metrics, writes predictions
    that can be read back for every image, and draws images that are not blank and ranked by their mistakes."""
    work_dir = trained(task)
    finite_metrics(work_dir, task)
    assert all(math.isfinite(entry['loss']) for entry in scalars(work_dir) if 'loss' in entry)
    out, shown = tmp_path / 'out.pkl', tmp_path / 'shown'
    tools.test(
        task, tools.last(work_dir, task), tmp_path / 'test', arguments=['--out', str(out), '--show-dir', str(shown)]
    )
    metrics = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text().splitlines()[-1])
    trained_metrics = [entry for entry in scalars(work_dir) if METRICS[task][0] in entry][-1]
    assert [metrics[key] for key in METRICS[task]] == [trained_metrics[key] for key in METRICS[task]]
    with open(out, 'rb') as file:
        assert len(pickle.load(file)) == 2
    images = [np.asarray(Image.open(path)) for path in shown.rglob('*.png')]
    assert len(images) == 2 and all(image.std() > 10 for image in images)
    errors = [one['error'] for one in json.loads((shown / 'mistakes.json').read_text())]
    assert len(errors) == 2 and errors == sorted(errors, reverse=True) and all(0 <= error <= 1 for error in errors)


def test_tta_merges_the_mirror_image(tools, trained, tmp_path):
    """Test-time augmentation labels each pixel by the mean of the probabilities of five sizes and their mirror
    images, each predicted by itself."""
    checkpoint, out = tools.last(trained('upernet'), 'upernet'), tmp_path / 'out.pkl'
    sizes = [f'tta_pipeline.1.transforms.0.{i}.scale=({48 + 8 * i},{48 + 8 * i})' for i in range(5)]
    tools.test('upernet', checkpoint, tmp_path / 'tta', *sizes, arguments=['--tta', '--out', str(out)])
    metrics = json.loads(next((tmp_path / 'tta').glob('*/*.json')).read_text().splitlines()[-1])
    assert math.isfinite(metrics['mIoU'])
    args = parse_test_args(
        [tools.configs['upernet'], str(checkpoint), '--cfg-options', *tools.options('upernet', *sizes)]
    )
    cfg = load_config(args.config, args.cfg_options)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
        model.load_state_dict(load_file(checkpoint)['state_dict'])
        pipeline = Compose(cfg.tta_pipeline)
    for merged in pickle.loads(out.read_bytes()):
        views = pipeline(dict(img_path=merged['img_path'], reduce_zero_label=True, seg_fields=[]))
        with torch.no_grad():
            samples = [
                model.test_step(dict(inputs=[image], data_samples=[sample]))[0]
                for image, sample in zip(views['inputs'], views['data_samples'], strict=True)
            ]
        mean = torch.stack([sample.seg_logits.data.softmax(0) for sample in samples]).mean(0)
        assert len(samples) == 10
        assert (mean.argmax(0) == merged['pred_sem_seg']['data'][0]).double().mean() > 0.999


def test_resume_goes_on_and_needs_no_initial_weights(tools, tmp_path):
    """--resume takes the next iteration, not the first, and never opens the file of the initial weights."""
    weights = ConvNeXtV2(tools.arch, out_norm=False).state_dict()
    start = tmp_path / 'start.pth'
    torch.save(weights, start)
    initial = f'model.backbone.init_cfg.checkpoint={start}'
    tools.train('upernet', tmp_path / 'run', initial)
    start.unlink()
    tools.train('upernet', tmp_path / 'run', initial, 'train_cfg.max_iters=2', arguments=['--resume'])
    assert [entry['step'] for entry in scalars(tmp_path / 'run') if 'loss' in entry] == [2]
    assert load_file(tmp_path / 'run' / 'iter_2.pth')['meta']['iter'] == 2


@pytest.mark.parametrize('task', ['mask-rcnn', 'fcmae'])
def test_amp_on_the_cpu(tools, trained, tmp_path, task):
    """--amp trains in bfloat16 on the CPU; its first loss is that of fp32 to 3 %, gradients differ."""
    tools.train(task, tmp_path, 'default_hooks.logger.interval=1', arguments=['--amp'])
    first = [[entry['loss'] for entry in scalars(folder) if 'loss' in entry][0] for folder in (trained(task), tmp_path)]
    moments = [load_file(tools.last(folder, task))['optimizer']['state'] for folder in (trained(task), tmp_path)]
    assert any(not torch.equal(moments[0][key]['exp_avg'], moments[1][key]['exp_avg']) for key in moments[0])
    assert first[1] == pytest.approx(first[0], rel=0.03)


@pytest.mark.parametrize('counts, ratio', [(1, 2 / 16), (4, 8 / 16)])
def test_auto_scale_lr(tools, tmp_path, counts, ratio):
    """--auto-scale-lr multiplies the rate by actual over base batch, accumulated steps counted; --cfg-options holds."""
    tools.train(
        'fcmae',
        tmp_path,
        'optim_wrapper.optimizer.lr=0.064',
        'param_scheduler=None',
        f'optim_wrapper.accumulative_counts={counts}',
        arguments=['--auto-scale-lr'],
    )
    rates = {group['lr'] for group in load_file(tmp_path / 'epoch_1.pth')['optimizer']['param_groups']}
    assert list(rates) == [pytest.approx(0.064 * ratio)]


@pytest.mark.parametrize('task', ['mask-rcnn', 'upernet'])
def test_sparse_weights_reach_a_training_step(tools, tmp_path, task):
    """An official sparse file goes through the converter and a training step at rate zero; the checkpoint's backbone
    then equals the file's weights bit for bit."""
    shapes = ConvNeXtV2(tools.arch, out_norm=False).state_dict()
    weights = {name: 0.1 * torch.randn(value.shape) for name, value in shapes.items()}
    torch.save(dict(model=official_sparse_file(weights)), tmp_path / 'sparse.pt')
    subprocess.run(
        [sys.executable, 'tools/convert_checkpoint.py', tmp_path / 'sparse.pt', tmp_path / 'dense.pth'],
        cwd=ROOT,
        check=True,
    )
    tools.train(
        task,
        tmp_path / 'run',
        f'model.backbone.init_cfg.checkpoint={tmp_path / "dense.pth"}',
        'optim_wrapper.optimizer.lr=0.0',
        'param_scheduler=None',
    )
    saved = load_file(tools.last(tmp_path / 'run', task))['state_dict']
    assert all(torch.equal(saved[f'backbone.{name}'], value) for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize('task', ['mask-rcnn', 'upernet', 'fcmae'])
def test_command_line(tools, tmp_path, task):
    """The real command trains one iteration, says so, and leaves a checkpoint."""
    run = tools.command('train', task, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert tools.last(tmp_path, task).exists()
    assert all(key in run.stdout + run.stderr for key in METRICS.get(task, ()))


@pytest.mark.slow
@pytest.mark.parametrize('task', ['fcmae', 'upernet'])
def test_switches(tools, tmp_path, task):
    """Compiled, recomputing its blocks and with frozen stages, each an override away, a model trains a step: the frozen
    stages stay and others move."""
    start = ConvNeXtV2(tools.arch).state_dict()
    torch.save(start, tmp_path / 'start.pth')
    tools.train(
        task,
        tmp_path / 'run',
        'compile.backend=aot_eager',
        'model.backbone.with_cp=True',
        'model.backbone.frozen_stages=2',
        'model.backbone.init_cfg.type=ConvNeXtV2Pretrained',
        f'model.backbone.init_cfg.checkpoint={tmp_path / "start.pth"}',
    )
    saved = load_file(tools.last(tmp_path / 'run', task))['state_dict']
    moved = {
        name
        for name, value in start.items()
        if f'backbone.{name}' in saved and not torch.equal(saved[f'backbone.{name}'], value)
    }
    assert moved and all(
        name.startswith(('stages.2', 'stages.3', 'downsample_layers.2', 'downsample_layers.3', 'norm'))
        for name in moved
    )


@pytest.mark.slow
def test_two_processes_train_and_test(tools, tmp_path):
    """dist_train.sh and dist_test.sh share the work between two processes on the CPU, and print the metric once."""
    environment = {
        **os.environ,
        'PYTHON': sys.executable,
        'PORT': '29517',
        'CUDA_VISIBLE_DEVICES': '',
    }
    tail = ['--work-dir', str(tmp_path), '--cfg-options', *tools.options('upernet')]
    config = tools.configs['upernet']
    for command in (
        ['tools/dist_train.sh', config, '2'],
        ['tools/dist_test.sh', config, str(tmp_path / 'iter_1.pth'), '2'],
    ):
        run = subprocess.run(
            ['bash', *command, *tail], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=200
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert (run.stdout + run.stderr).count(' mIoU: ') == 1


def test_slurm_command(tmp_path):
    """slurm_train.sh asks srun for the tasks, GPUs and job that it was given, and passes the arguments on."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {
        **os.environ,
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'GPUS': '16',
        'GPUS_PER_NODE': '4',
        'SRUN_ARGS': '--time=1:00 --qos=low',
    }
    run = subprocess.run(
        ['bash', 'tools/slurm_train.sh', 'part', 'job', 'a.py', '--work-dir', 'with space'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    said = run.stdout.splitlines()
    assert {
        '--partition=part',
        '--job-name=job',
        '--gres=gpu:4',
        '--ntasks=16',
        '--ntasks-per-node=4',
        '--time=1:00',
        '--qos=low',
    } <= set(said)
    assert said[-8:] == ['python', '-u', 'tools/train.py', 'a.py', '--launcher', 'slurm', '--work-dir', 'with space']
