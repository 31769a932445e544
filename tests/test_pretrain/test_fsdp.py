"""A model sharded by FSDP2 trains, saves and resumes as the replicated one, in the ordinary checkpoint layout."""

import subprocess
import sys

import pytest
import torch
from fcmae_runs import BATCH, assert_same, in_processes, make_config, read, resume, train, write_images
from mmengine.config import Config
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block

DOUBLE = {'model.type': 'DoubleFCMAE', 'optim_wrapper.clip_grad': dict(max_norm=0.05)}
FSDP = {'runner_type': 'FlexibleRunner', 'strategy': dict(type='FSDP2Strategy')}
IMAGES = {'custom_hooks': [dict(type='ReconstructionHook', num_images=2)]}
HALF = BATCH // 2


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def assert_sharded(runner):
    """Each block is a unit of its own, and this process holds half of every tensor whose first side is even."""
    blocks = [module for module in runner.model.modules() if isinstance(module, ConvNeXtV2Block)]
    assert len(blocks) == 6 and all(isinstance(block, FSDPModule) for block in blocks)
    for block in blocks:
        names = block._get_fsdp_state()._fsdp_param_group.fsdp_params
        assert len(names) == len(list(block.parameters()))
    states = runner.optim_wrapper.optimizer.state
    for parameter in runner.model.parameters():
        for tensor in (parameter, states[parameter]['exp_avg'], states[parameter]['exp_avg_sq']):
            assert isinstance(tensor, DTensor) and tensor.to_local().numel() * 2 == tensor.numel()


def train_in_two(images, folder):
    train(make_config(images, folder / 'ddp', HALF, **DOUBLE))
    assert_sharded(train(make_config(images, folder / 'fsdp', HALF, **DOUBLE, **FSDP, **IMAGES)))
    resume(make_config(images, folder / 'fsdp_from_ddp', HALF, **DOUBLE, **FSDP), folder / 'ddp' / 'iter_2.pth')
    resume(make_config(images, folder / 'ddp_from_fsdp', HALF, **DOUBLE), folder / 'fsdp' / 'iter_4.pth')
    fp16 = {'optim_wrapper.type': 'FP16OptimWrapper', 'optim_wrapper.loss_scale': dict(init_scale=2.0**127)}
    resume(make_config(images, folder / 'fp16', HALF, **FSDP, **fp16), folder / 'fsdp' / 'iter_4.pth')


@pytest.mark.slow
def test_sharded_run_is_the_replicated_run(images, tmp_path):
    """Two processes with shards end in the weights, moments and schedules of two with replicas and of one process, to
    1e-6 in float64 with clipped gradients, and each kind resumes the other's checkpoints; images are drawn on the
    way. In float16 an overflow on any process skips the step of all."""
    in_processes(train_in_two, images, tmp_path, folder=tmp_path)
    train(make_config(images, tmp_path / 'one', **DOUBLE))
    resume(make_config(images, tmp_path / 'one_from_fsdp', **DOUBLE), tmp_path / 'fsdp' / 'iter_1.pth')
    wanted = read(tmp_path / 'one')
    for run in ('ddp', 'fsdp', 'fsdp_from_ddp', 'ddp_from_fsdp', 'one_from_fsdp'):
        assert_same(read(tmp_path / run), wanted, tolerance=1e-6)
    assert read(tmp_path / 'fsdp')['meta']['seed'] == 0
    assert len(list((tmp_path / 'fsdp').rglob('reconstruction_*.png'))) == 2
    skipped, before = read(tmp_path / 'fp16'), read(tmp_path / 'fsdp', 4)
    assert skipped['optimizer']['loss_scaler']['scale'] == 2.0**125
    assert_same(
        skipped['state_dict'],
        {name: value.to(skipped['state_dict'][name].dtype) for name, value in before['state_dict'].items()},
    )


def test_one_process_is_refused(images, tmp_path):
    """Without a launcher the error says how to start, and how to do without shards."""
    with pytest.raises(ValueError, match='FSDP2Strategy.*there is only one: launch with tools/dist_train.sh, or'):
        train(make_config(images, tmp_path, **FSDP))


def test_huge_has_a_sharded_recipe():
    """The sharded recipe of the huge model is the plain one, with the strategy."""
    plain, sharded = (
        Config.fromfile(f'configs/fcmae/fcmae_convnextv2-h_{name}64xb64-800e_in1k.py').to_dict()
        for name in ('', 'fsdp_')
    )
    assert {key: sharded.pop(key) for key in FSDP} == FSDP and sharded == plain


@pytest.mark.slow
def test_train_and_convert_tools(images, tmp_path):
    """tools/train.py trains the sharded recipe in two processes, and tools/convert_checkpoint.py reads the file as it
    reads any other: the backbone's weights are those of the checkpoint."""
    options = {
        'model.backbone.arch': 'atto',
        'model.neck.channels': 12,
        'train_dataloader.dataset.data_root': images,
        'train_dataloader.dataset.pipeline.1.scale': 64,
        'train_dataloader.batch_size': HALF,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_cfg.max_epochs': 1,
        'param_scheduler.0.end': 1,
    }
    call(
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node=2',
        'tools/train.py',
        'configs/fcmae/fcmae_convnextv2-h_fsdp_64xb64-800e_in1k.py',
        '--launcher',
        'pytorch',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *(f'{key}={value}' for key, value in options.items()),
    )
    call('tools/convert_checkpoint.py', tmp_path / 'epoch_1.pth', tmp_path / 'backbone.pth')
    trained = load_file(tmp_path / 'epoch_1.pth')
    assert trained['meta']['iter'] == 3
    converted = load_file(tmp_path / 'backbone.pth')
    converted = converted.get('state_dict', converted)
    assert len(converted) > 100
    for name, value in converted.items():
        assert torch.equal(value, trained['state_dict'][f'backbone.{name}'])


def call(*command):
    result = subprocess.run([sys.executable, *map(str, command)], text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
