"""Settings that make small runs fast, and a narrow backbone with every parameter random: GRN and leaks are visible."""

import ast
import os

import pytest
import torch
from mmengine.config import config as mmengine_config
from mmengine.registry import DefaultScope
from small_models import NARROW

from mmconvnextv2 import ConvNeXtV2

# On tensors this small, threads that wait for each other cost more than they save: 30 times as much when pytest-xdist
# runs as many workers as there are cores. The number of threads also changes last bits. Processes that tests start
# inherit the variable.
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'

# Tests run on the CPU, where results have the same bits on any machine, and where several processes find devices. What
# is about GPUs restores the variable.
os.environ.setdefault('MMCONVNEXTV2_TEST_GPUS', os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))
os.environ['CUDA_VISIBLE_DEVICES'] = ''


def check_syntax(text, **options):
    """Return a config's text unformatted, if it is Python."""
    ast.parse(text)
    return text, True


# mmengine formats the config of a run with yapf seven times, which is most of the time of a small run. Commands that
# tests start in processes of their own still do.
mmengine_config.FormatCode = check_syntax


@pytest.fixture(autouse=True)
def own_scope():
    """Undo what a test's Runner leaves behind: mmengine keeps the last default scope for the whole process."""
    known = set(DefaultScope._instance_dict)
    yield
    for name in set(DefaultScope._instance_dict) - known:
        del DefaultScope._instance_dict[name]


@pytest.fixture(scope='session')
def make_backbone():
    """Return a function that builds a float64 backbone, with the same random weights in all calls."""

    def make(arch=NARROW, **kwargs):
        generator = torch.Generator().manual_seed(0)
        model = ConvNeXtV2(arch, **kwargs).double()
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        return model

    return make
