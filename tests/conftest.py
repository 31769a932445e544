"""A narrow backbone with every parameter random, so that GRN is not the identity and leaks are visible."""

import pytest
import torch
from mmengine.registry import DefaultScope
from small_models import NARROW

from mmconvnextv2 import ConvNeXtV2


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
