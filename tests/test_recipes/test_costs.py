"""Parameters and multiply-adds of the recipes are the published ones of arXiv 2301.00808."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmconvnextv2.commands.flops import build_on_meta, count_costs, multiply_adds, total
from mmconvnextv2.utils.config import import_scope

ROOT = Path(__file__).parents[2]
MASK_RCNN = 'mask_rcnn/mask-rcnn_convnextv2-{}_fpn_lsj-3x_coco.py'
UPERNET = 'upernet/upernet_convnextv2-{}_160k_ade20k-512x512.py'


def costs_of(config, height, width):
    cfg = Config.fromfile(ROOT / 'configs' / config)
    import_scope(cfg)
    return count_costs(build_on_meta(cfg), height, width)


@pytest.mark.parametrize(
    'config, shape, parameters, published',
    [
        (MASK_RCNN.format('b'), (800, 1280), None, 486),
        (MASK_RCNN.format('l'), (800, 1280), None, 875),
        (MASK_RCNN.format('h'), (800, 1280), None, 2525),
        (UPERNET.format('b'), (512, 2048), 122, 1170),
        (UPERNET.format('l'), (512, 2048), 235, 1573),
        (UPERNET.format('h'), (512, 2048), 707, 3272),
        ('upernet/upernet_convnextv2-h_in22k-160k_ade20k-640x640.py', (640, 2560), 707, 5113),
    ],
)
def test_published_costs(config, shape, parameters, published):
    """Multiply-adds in G, and parameters in M where they are published, of tables 6 and 7, within 0.2 % and 0.5 M."""
    found_parameters, work = total(costs_of(config, *shape))
    assert work / 1e9 == pytest.approx(published, rel=2e-3)
    if parameters:
        assert found_parameters / 1e6 == pytest.approx(parameters, abs=0.5)


@pytest.mark.parametrize(
    'letter, parameters, published',
    [
        ('a', 3.7, 0.55),
        ('f', 5.2, 0.78),
        ('p', 9.1, 1.37),
        ('n', 15.6, 2.45),
        ('t', 28.6, 4.47),
        ('b', 89, 15.4),
        ('l', 198, 34.4),
        ('h', 660, 115),
    ],
)
def test_published_costs_of_classifiers(letter, parameters, published):
    """Parameters in M and multiply-adds in G at 224 of the eight sizes, within 1 %."""
    found_parameters, work = total(costs_of(f'classification/convnextv2-{letter}_fcmae-ft_in1k-224.py', 224, 224))
    assert found_parameters / 1e6 == pytest.approx(parameters, rel=1e-2)
    assert work / 1e9 == pytest.approx(published, rel=1e-2)


def test_count_by_hand():
    """A convolution and a linear layer count one multiply-add a weight and position."""
    conv, linear = (module.to('meta') for module in (nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)))
    image = torch.empty(2, 3, 4, 6, device='meta')
    _, work = multiply_adds(lambda: linear(conv(image).mean((2, 3))))
    assert work == 2 * (4 * 6 * 3 * 9 * 8 + 8 * 5)


def test_parts_add_up():
    """Every parameter of the model is in one part, and the box heads of a cascade are three times those of one."""
    cfg = Config.fromfile(ROOT / 'configs/cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-t_fpn_ms-crop-3x_coco.py')
    import_scope(cfg)
    model = build_on_meta(cfg)
    costs = count_costs(model, 800, 1280)
    assert total(costs)[0] == sum(parameter.numel() for parameter in model.parameters())
    _, one = multiply_adds(model.roi_head.bbox_head[0], torch.empty(1000, 256, 7, 7, device='meta'))
    assert costs['box heads, 1000'][1] == 3 * one


def test_command():
    """The tool prints the table with the totals."""
    command = [sys.executable, 'tools/get_flops.py', f'configs/{UPERNET.format("a")}', '--shape', '64', '64']
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0 and run.stdout.splitlines()[-1].startswith('total')


def test_pretraining_is_refused():
    """An algorithm without inference is named."""
    with pytest.raises(ValueError, match='FCMAE has no inference'):
        costs_of('fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py', 224, 224)
