"""The execution over MinkowskiEngine's sparse tensors; ``test_invariants.py`` has what all executions share."""

import collections
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import NARROW
from test_invariants import needs_minkowski, values_and_gradients
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.models.execution import get_execution
from mmconvnextv2.models.execution.minkowski import (
    depthwise_kernel,
    import_minkowski_engine,
    new_manager,
    site_coordinates,
    strided_kernel,
)
from mmconvnextv2.ops.grid import Grid

SHAPES = {  # cells as rows x columns, and the visible ones of each image
    'one cell': ((1, 1), [[0]]),
    'last row masked': ((3, 2), [[0, 1, 3], [0, 2, 3]]),
    'last column masked': ((2, 3), [[0, 3], [1, 3], [0, 4]]),
    'first row masked': ((3, 2), [[3, 4]]),
    'mixed': ((2, 4), [[0, 5, 7], [2, 3, 6]]),
}


def make_case(shape):
    (rows, columns), cells = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(cells), 3, rows * 32, columns * 32, dtype=torch.float64, generator=generator)
    return images, torch.tensor(cells)


@needs_minkowski
@pytest.mark.parametrize('other', ('masked', 'packed'))
@pytest.mark.parametrize('shape', SHAPES)
def test_agrees_in_values_and_gradients(make_backbone, shape, other):
    """Maps and the gradients of images and weights equal the other executions' in float64, for each shape of mask."""
    model, (images, cells) = make_backbone(), make_case(shape)
    ours = values_and_gradients(model, images, cells, 'minkowski')
    for one, reference in zip(ours, values_and_gradients(model, images, cells, other), strict=True):
        assert one.any()
        torch.testing.assert_close(one, reference, rtol=1e-9, atol=1e-9)


@needs_minkowski
def test_agrees_when_recomputed(make_backbone):
    """Activation checkpointing runs each block again on its own stage's coordinates and gives the same gradients."""
    images, cells = make_case('mixed')
    once = values_and_gradients(make_backbone().train(), images, cells, 'minkowski')
    again = values_and_gradients(make_backbone(with_cp=True).train(), images, cells, 'minkowski')
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@needs_minkowski
def test_runs_minkowski_engine(make_backbone, monkeypatch):
    """A step runs one channelwise convolution per block, and MinkowskiEngine's kernels once per downsampling."""
    engine, backend = import_minkowski_engine(), importlib.import_module('MinkowskiEngineBackend._C')
    calls = collections.Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(engine.MinkowskiChannelwiseConvolution, 'forward')
    for name in ('ConvolutionForwardCPU', 'ConvolutionBackwardCPU'):
        count(backend, name)
    images, cells = make_case('mixed')
    values_and_gradients(make_backbone(), images, cells, 'packed')
    assert not calls
    values_and_gradients(make_backbone(), images, cells, 'minkowski')
    assert calls == dict(forward=sum(NARROW['depths']), ConvolutionForwardCPU=3, ConvolutionBackwardCPU=3)


@needs_minkowski
@pytest.mark.parametrize('shape', SHAPES)
def test_site_order_is_matched(shape):
    """At every stage, MinkowskiEngine's row for each of our sites holds that site's coordinates, by a plain loop."""
    (rows, columns), cells = SHAPES[shape]
    execution = get_execution('minkowski', masking=True)
    images = torch.randn(len(cells), 3, rows * 32, columns * 32)
    sites, grid = execution.enter(images, torch.tensor(cells), nn.Conv2d(3, 1, 4, stride=4))
    for patch in (8, 4, 2, 1):
        expected = [
            [image, (cell // columns * patch + i) * 8 // patch, (cell % columns * patch + j) * 8 // patch]
            for image, visible in enumerate(cells)
            for cell in visible
            for i in range(patch)
            for j in range(patch)
        ]
        assert grid.manager.get_coordinates(grid.key)[grid.to_ours].tolist() == expected
        numbers = torch.arange(len(expected), dtype=torch.float64).view(len(cells), -1, 1)
        assert torch.equal(grid.sites(grid.rows(numbers), numbers), numbers)
        if patch > 1:
            sites, grid = execution.downsample(sites, grid, nn.Conv2d(1, 1, 2, stride=2))


def test_site_coordinates_by_hand():
    """Two cells of 2 x 2 sites in an image of 1 x 3 cells: cells in order, then rows inside the cell."""
    grid = Grid(2, 6, stride=16, visible_cells=torch.tensor([[0, 2]]))
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 4], [0, 0, 5], [0, 1, 4], [0, 1, 5]]
    assert site_coordinates(grid).tolist() == expected and site_coordinates(grid).dtype == torch.int32


def test_kernels_by_hand():
    """In a sparse kernel's first axis the row offset runs fastest: index = column * size + row."""
    weight = torch.arange(2 * 49.0).view(2, 1, 7, 7)
    assert depthwise_kernel(weight)[3 * 7 + 5].tolist() == weight[:, 0, 5, 3].tolist()
    weight = torch.arange(3 * 2 * 4.0).view(3, 2, 2, 2).contiguous(memory_format=torch.channels_last)
    kernel = strided_kernel(weight)
    assert kernel[1 * 2 + 0].tolist() == weight[:, :, 0, 1].T.tolist() and kernel.is_contiguous()


@needs_minkowski
def test_samples_no_random_number(make_backbone):
    """A forward leaves the random state alone, so DropPath drops the same images as with the other executions."""
    images, cells = make_case('mixed')
    model = make_backbone(drop_path_rate=0.5).train()
    results = []
    for execution in ('packed', 'minkowski'):
        torch.manual_seed(3)
        results.append((model(images, cells, execution)[-1], torch.get_rng_state()))
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)


@needs_minkowski
def test_follows_under_bfloat16(make_backbone):
    """Under bfloat16 autocast maps stay as close to float32 ones as those of the packed execution do."""
    images, cells = make_case('mixed')
    model, images = make_backbone().float(), images.float()
    exact = model(images, cells, 'minkowski')[-1]
    errors = []
    for execution in ('minkowski', 'packed'):
        with torch.autocast('cpu', torch.bfloat16):
            errors.append((model(images, cells, execution)[-1] - exact).norm() / exact.norm())
    assert 0 < errors[0] < 1.5 * errors[1] + 1e-3 and errors[0] < 0.05


@needs_minkowski
def test_fcmae_trains_a_step():
    """FCMAE from the shipped config with ``model.execution=minkowski`` takes the optimizer step of ``packed``."""
    from mmengine.optim import build_optim_wrapper
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    def step(execution):
        cfg = Config.fromfile('configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py')
        cfg.merge_from_dict({'model.execution': execution, 'model.neck.channels': 12})
        cfg.model.backbone.arch = NARROW
        cfg.optim_wrapper.pop('type')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).double().train()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        samples = [DataSample(metainfo=dict(visible_cells=np.array(cells))) for cells in SHAPES['mixed'][1]]
        images = torch.randint(0, 256, (2, 3, 64, 128), generator=torch.Generator().manual_seed(4)).double()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        data = dict(inputs=images, data_samples=samples)
        loss = model.train_step(data, build_optim_wrapper(model, cfg.optim_wrapper))['loss']
        assert all((new != old).any() for new, old in zip(model.parameters(), before))
        return [loss, *model.parameters()]

    for ours, reference in zip(step('minkowski'), step('packed'), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-9)


@needs_minkowski
def test_leaves_the_standard_library_alone():
    """The name that MinkowskiEngine needs in ``collections`` is removed after its import."""
    import_minkowski_engine()
    assert not hasattr(collections, 'Sequence')


@needs_minkowski
@pytest.mark.parametrize('device', ('meta', 'cuda'))
def test_refuses_devices(device):
    """A device that the installed MinkowskiEngine cannot use is refused with a way out."""
    if device == 'cuda' and import_minkowski_engine().is_cuda_available():
        pytest.skip('this MinkowskiEngine was built with CUDA')
    with pytest.raises(ValueError, match=f"{device}.*execution='packed'"):
        new_manager(torch.device(device))


CHOOSE = """
import sys, torch
from mmconvnextv2 import ConvNeXtV2
model = ConvNeXtV2(dict(depths=(1, 1, 1, 1), channels=(2, 2, 2, 2)))
model(torch.zeros(1, 3, 32, 64), torch.tensor([[1]]))
assert 'MinkowskiEngine' not in sys.modules
try:
    model(torch.zeros(1, 3, 32, 64), torch.tensor([[1]]), 'minkowski')
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    'content, reason',
    [
        ('raise ModuleNotFoundError("No module named absent")', 'ModuleNotFoundError: No module named absent'),
        ('raise OSError("libopenblas.so.0: cannot open")', 'OSError: libopenblas.so.0: cannot open'),
    ],
)
def test_absent_or_broken_says_what_to_do(tmp_path, content, reason):
    """In a fresh interpreter without a working MinkowskiEngine all else runs; choosing it gives reason and remedy."""
    (tmp_path / 'MinkowskiEngine.py').write_text(content)
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    run = subprocess.run(
        [sys.executable, '-c', CHOOSE],
        env={**os.environ, 'PYTHONPATH': path},
        text=True,
        capture_output=True,
        check=True,
    )
    assert reason in run.stdout and '`make minkowski`' in run.stdout and "execution='packed'" in run.stdout


def test_state_dict_does_not_depend_on_it():
    """Choosing the execution adds no parameter and no buffer: keys before and after a forward are the dense ones."""
    model = ConvNeXtV2(NARROW)
    keys = {name: value.shape for name, value in model.state_dict().items()}
    if find_spec('MinkowskiEngine') is not None:
        model(torch.zeros(1, 3, 32, 64), torch.tensor([[1]]), 'minkowski')
    assert {name: value.shape for name, value in model.state_dict().items()} == keys
