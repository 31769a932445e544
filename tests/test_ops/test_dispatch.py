"""One setting bounds which code runs: the backbone's ``kernels``, or else the environment's."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from small_models import NARROW
from torch import nn

from mmconvnextv2 import ConvNeXtV2, ConvNeXtV2Block
from mmconvnextv2.models.convnext_v2 import set_kernels
from mmconvnextv2.ops import dispatch
from mmconvnextv2.ops.grid import Grid


def make_backbone(**options):
    torch.manual_seed(0)
    model = ConvNeXtV2(NARROW, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def saved(model, *inputs):
    """Return what a forward keeps for the backward pass, its maps and gradients."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = model(*inputs)
    return sum(kept), maps, torch.autograd.grad(sum(one.square().sum() for one in maps), list(model.parameters()))


@pytest.mark.parametrize('cells', [None, torch.tensor([[0, 3], [1, 2]])], ids=['dense', 'packed'])
def test_layers_equal_fused_operations(cells):
    """Layer by layer a backbone has the same maps and gradients, and keeps more for the backward pass."""
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused, maps, gradients = saved(make_backbone(), images, cells)
    layers, other_maps, other_gradients = saved(make_backbone(kernels='layers'), images, cells)
    assert layers > fused
    for one, other in zip((*maps, *gradients), (*other_maps, *other_gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    assert saved(make_backbone(kernels='torch'), images, cells)[0] == fused


@pytest.mark.parametrize('kernels', dispatch.KERNELS)
def test_pretraining_follows_the_backbone(kernels):
    """The key reaches every block of the encoder and of FCMAE's decoder."""
    pytest.importorskip('mmpretrain', reason='FCMAE needs mmpretrain: pip install mmconvnextv2[pretrain]')
    from mmconvnextv2.pretrain import FCMAE

    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch=NARROW, kernels=kernels, out_indices=(3,), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=8),
        head=dict(type='FCMAEHead'),
    )
    assert [one.kernels for one in model.modules() if isinstance(one, ConvNeXtV2Block)] == [kernels] * 6


def test_unknown_setting_is_refused():
    """A misspelt setting names the known ones, in the config and in the environment."""
    known = r"\['auto', 'triton', 'torch', 'layers'\]"
    with pytest.raises(ValueError, match=f"kernels='tritn' is unknown: choose from {known}"):
        ConvNeXtV2(NARROW, kernels='tritn')
    with pytest.raises(ValueError, match='kernels=.no. is unknown'):
        set_kernels(ConvNeXtV2(NARROW), 'no')
    run = subprocess.run(
        [sys.executable, 'tools/get_flops.py', 'configs/quickstart/upernet.py'],
        capture_output=True,
        text=True,
        env={**os.environ, 'MMCONVNEXTV2_KERNELS': 'no'},
    )
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: MMCONVNEXTV2_KERNELS='no' is unknown: choose from")


@pytest.mark.parametrize('value, chosen', [('0', 'layer'), ('layers', 'layer'), ('1', 'triton'), ('auto', 'triton')])
def test_environment_sets_the_default(value, chosen):
    """MMCONVNEXTV2_KERNELS sets what a backbone without the key does; here with kernels interpreted on the CPU."""
    pytest.importorskip('triton', reason='Triton is not installed')
    code = (
        'import torch\nfrom mmconvnextv2.ops.dispatch import choose_depthwise\n'
        'from mmconvnextv2.ops.grid import Grid\n'
        'conv = torch.nn.Conv2d(4, 4, 7, padding=3, groups=4)\nwith torch.no_grad():\n'
        '    print(choose_depthwise(torch.zeros(1, 64, 4), Grid(8, 8, 4), conv))'
    )
    run = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={'PATH': '', 'TRITON_INTERPRET': '1', 'MMCONVNEXTV2_KERNELS': value},
    )
    assert run.stdout.strip() == chosen, run.stderr


def test_old_switch_warns():
    """``block.fused = False``, 0.1's switch, still runs layers one by one, and names the new one."""
    block = ConvNeXtV2Block(4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        block.fused = False
    assert 'block.kernels' in str(said[0].message) and block.kernels == 'layers' and not block.fused
    layers = block.pointwise_conv1, block.grn, block.pointwise_conv2
    assert not dispatch.fuse_mlp(Grid(8, 8, 4, kernels=block.kernels), *layers)


def test_parts_of_a_folded_product():
    """Products of few images are cut until their tiles fill a GPU, in equal parts of at least 1,024 sites; large
    batches and widths are not cut."""
    assert dispatch.count_parts(1, 256 * 256, 128, 512) == 64  # 4 tiles
    assert dispatch.count_parts(2, 256 * 256, 128, 512) == 32
    assert dispatch.count_parts(64, 56 * 56, 128, 512) == 1
    assert dispatch.count_parts(1, 128 * 128, 1024, 4096) == 1
    assert dispatch.count_parts(1, 33 * 129, 128, 512) == 1  # odd
    assert dispatch.count_parts(1, 4096, 128, 512) == 4
