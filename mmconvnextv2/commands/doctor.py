"""``python -m mmconvnextv2 doctor``: report what is installed, what works, and how to fix what does not.

Each part is checked by using it, with a forward pass, a compiled operation or an import, not only by its version.
"""

import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..engine.devices import has_bf16, lists_gpu, unusable_gpu
from ..mmcv_operators import serving_operators
from ..models.convnext_v2 import ConvNeXtV2, ConvNeXtV2Block
from ..models.execution import EXECUTIONS, get_execution
from ..models.execution.minkowski import import_minkowski_engine
from ..ops.dispatch import HAS_TRITON, INTERPRETED, use_triton
from ..ops.grid import Grid
from ..ops.tuning import measured
from ..utils.compat import FORKS, LITE, WORKING, installed_version
from ..version import __version__

USED_FOR = {
    'mmcv': 'detection, segmentation and FCMAE',
    'mmdet': 'detection',
    'mmsegmentation': 'segmentation',
    'mmpretrain': 'FCMAE and classification',
}
MODULES = {'mmdet': 'mmdet', 'mmsegmentation': 'mmseg', 'mmpretrain': 'mmpretrain'}
HOME = Path(__file__).parents[1]
OPERATORS_ADVICE = (
    'compiled for another torch, or only for the CPU: set MMCONVNEXTV2_OPERATORS=torchvision to use those of '
    'torchvision; permanently, pip uninstall mmcv, then pip install mmcv-lite==2.1.0 --no-deps'
)


class Check(NamedTuple):
    """One line of the report.

    Args:
        name (str): Name of the checked part.
        found (str): Result of the check.
        advice (str, optional): What the user can do. Defaults to None, nothing.
        is_problem (bool): Whether something installed does not work. Defaults to False.
    """

    name: str
    found: str
    advice: str | None = None
    is_problem: bool = False


def try_check(name: str, action: Callable[[], str], advice: str) -> Check:
    """Run ``action`` and report the text that it returns; an exception is reported as a problem."""
    try:
        return Check(name, action())
    except Exception as error:  # a broken installation may raise anything
        return Check(name, f'{type(error).__name__}: {error}'.splitlines()[0], advice, is_problem=True)


def find_packages() -> Iterator[Check]:
    """Check the packages of the stack, forks that overwrite them, and mixtures of both."""
    for name in WORKING:
        others = [other for other in (LITE.get(name), FORKS.get(name)) if other and installed_version(other)]
        found = [installed_version(name)] * bool(installed_version(name))
        found += [f'{other} {installed_version(other)}' for other in others]
        if len(found) > 1:
            yield Check(
                name,
                ', and '.join(found),
                'they install the same files: pip uninstall all except one, then '
                'install that one with --force-reinstall --no-deps',
                is_problem=True,
            )
        elif found:
            yield Check(name, found[0])
        else:
            yield _missing(name)
    yield from find_mixture()


def _missing(name: str) -> Check:
    if name in LITE:
        return Check(
            name,
            'not installed',
            f"needed for {USED_FOR[name]}; pip install 'mmconvnextv2[ops]' adds {LITE[name]} without compiling",
        )
    return Check(name, 'not installed', f'needed for {USED_FOR.get(name, "everything")}; `make env` installs it')


def find_mixture() -> Iterator[Check]:
    """Report a mixture of upstream packages and forks, since each family is only tested with itself."""
    upstream = [name for name in FORKS if installed_version(name)]
    forks = [fork for name, fork in FORKS.items() if name not in upstream and installed_version(fork)]
    if upstream and forks:
        yield Check(
            'mixed packages',
            f'{", ".join(upstream)} of upstream with {", ".join(forks)}',
            'they are not compatible: pip uninstall one family, and install the same packages of the other',
            is_problem=True,
        )


def find_imports() -> Iterator[Check]:
    """Import the installed packages as recipes do, which reveals incompatible versions and undeclared dependencies."""
    for name, module in MODULES.items():
        if installed_version(name) or installed_version(FORKS[name]):
            yield try_check(
                f'import {module}',
                lambda: import_module(f'{module}.utils') and f'{import_module(module).__version__} works',
                'install what the message names, or the versions in requirements/lock.txt',
            )


def find_recipes() -> Iterator[Check]:
    """Count the configs and tools in the package."""
    configs, tools = (len(list((HOME / '.mim' / kind).rglob('*.py'))) for kind in ('configs', 'tools'))
    missing = None if configs and tools else 'the package is incomplete: pip install --force-reinstall mmconvnextv2'
    yield Check(
        'mmconvnextv2',
        f'{__version__} at {HOME}, {configs} configs, {tools} tools',
        missing,
        is_problem=missing is not None,
    )


def find_readers() -> Iterator[Check]:
    """Report what decodes and resizes the images of pretraining."""
    if not (installed_version('opencv-python-headless') or installed_version('opencv-python')):
        return
    jpeg, resize = import_module('mmconvnextv2.datasets.jpeg'), import_module('mmconvnextv2.datasets.resize')
    advice = None
    if not jpeg.load_library():
        advice = f'libjpeg-turbo 3 reads crops faster: install its shared library, or set {jpeg.VARIABLE} to it'
    yield Check('JPEG of pretraining', jpeg.describe(), advice)
    advice = None if resize.find_kernels() else "pip install 'mmconvnextv2[loader]' resizes crops 3 times as fast"
    yield Check('resizing of pretraining', resize.describe(), advice)


def find_devices() -> Iterator[Check]:
    """List CUDA devices, and whether they support bf16."""
    if not torch.cuda.is_available():
        yield _no_device()
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            half = 'bf16' if has_bf16() else 'no bf16 without emulation: --amp or FP16OptimWrapper trains in fp16'
        yield Check(f'cuda:{index}', f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {half}')


def _no_device() -> Check:
    found, problem = f'no device for torch, built for CUDA {torch.version.cuda}', unusable_gpu()
    if problem:
        return Check('CUDA', found, problem, is_problem=True)
    if not lists_gpu():
        return Check('CUDA', found, 'the machine reports no GPU either; if it has one, check the driver')
    return Check('CUDA', found, f'CUDA_VISIBLE_DEVICES={os.environ["CUDA_VISIBLE_DEVICES"]!r} hides the GPU')


def find_operations() -> Iterator[Check]:
    """Use mmcv's operators on the CPU and on each GPU; import the optional MinkowskiEngine."""
    if any(map(installed_version, ('mmcv', LITE['mmcv'], FORKS['mmcv']))):
        for device in ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]:
            yield try_check(f'mmcv operators, {device}', lambda: _use_operators(device), OPERATORS_ADVICE)
    if installed_version('MinkowskiEngine'):
        yield try_check(
            'MinkowskiEngine', lambda: import_minkowski_engine().__version__, '`make minkowski` rebuilds it'
        )
    else:
        yield Check('MinkowskiEngine', 'not installed', 'only for execution=minkowski; `make minkowski` installs it')


def _use_operators(device: str) -> str:
    """Suppress one of two equal boxes, pool a map over another box, and check the results.

    Raises:
        RuntimeError: If a result is wrong.
    """
    ops, served = import_module('mmcv.ops'), serving_operators()
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]], device=device)
    _, kept = ops.nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)
    if kept.tolist() != [0]:
        raise RuntimeError(f'nms kept {kept.tolist()} of two equal boxes')
    ramp = torch.arange(4.0, device=device).expand(1, 1, 4, 4)
    pooled = ops.roi_align(ramp, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]], device=device), 2, 1.0, 2, 'avg', True)
    if not torch.allclose(pooled.cpu(), torch.tensor([0.5, 2.5]).expand(1, 1, 2, 2)):
        raise RuntimeError(f'RoIAlign pooled {pooled.flatten().tolist()} from a ramp')
    return served


def find_kernels() -> Iterator[Check]:
    """Compare the Triton kernels with the layers on each device, in each dtype of training."""
    devices = ['cpu'] * INTERPRETED + [f'cuda:{index}' for index in range(torch.cuda.device_count())]
    for device in devices:
        passed, advice = [], None if HAS_TRITON else 'pip install triton makes CUDA faster'
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                if use_triton(torch.zeros(1, device=device, dtype=dtype)):
                    passed.append(str(dtype).removeprefix('torch.'))
        if said:
            advice = str(said[0].message)
        elif HAS_TRITON and not passed:
            advice = 'unset MMCONVNEXTV2_KERNELS'
        found = f'equal the layers in {", ".join(passed)}' if passed else "none: torch's own operations"
        yield Check(f'Triton kernels, {device}', found, advice, is_problem=bool(said))
    if not devices:
        yield Check('Triton kernels', "none: torch's own operations")


def find_kernel_times() -> Iterator[Check]:
    """Time the operations of a block with kernels and with torch's operations, as cudnn_benchmark does."""
    for device in ['cpu'] * INTERPRETED + [f'cuda:{index}' for index in range(torch.cuda.device_count())]:
        if not use_triton(torch.zeros(1, device=device)):
            continue
        channels, side, batch = (4, 2, 1) if device == 'cpu' else (384, 14, 16)
        block = ConvNeXtV2Block(channels).to(device)
        sites = torch.randn(batch, side * side, channels, device=device, requires_grad=True)
        before = set(measured())
        with torch.backends.cudnn.flags(benchmark=True), torch.autocast(torch.device(device).type, torch.bfloat16):
            block(sites, Grid(side, side, 16), get_execution('dense', masking=False))
        for key in set(measured()) - before:
            times = ', '.join(f'{name} {seconds * 1e3:.3f} ms' for name, seconds in measured()[key].items())
            yield Check(f'{key[0]}, {device}', f'{times} ({batch} x {side * side} sites, {channels} channels, bf16)')


def find_executions() -> Iterator[Check]:
    """Run a narrow backbone forward and backward with every execution on every type of device."""
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        for name, execution in EXECUTIONS.items():
            if name == 'minkowski' and (device == 'cuda' or not installed_version('MinkowskiEngine')):
                continue
            yield try_check(
                f'execution={name}, {device}', lambda: _step(device, execution.masks, name), 'please report it'
            )


def _step(device: str, masks: bool, execution: str) -> str:
    model = ConvNeXtV2(dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8)), out_indices=(3,)).to(device)
    cells = torch.arange(2, device=device).expand(2, 2) if masks else None
    images = torch.randn(2, 3, 64, 64, device=device)
    model(images, cells, execution)[0].square().mean().backward()
    return 'works'


def find_rasters() -> Iterator[Check]:
    """Check rasterio, which is optional, by writing and reading a GeoTIFF in memory."""
    if installed_version('rasterio') is None:
        advice = "optional, for GeoTIFF files and images that do not fit into memory: `make geo`, or the extra 'geo'"
        yield Check('rasterio', 'not installed', advice)
        return
    yield try_check('rasterio', _read_geotiff, 'install it again: pip install --force-reinstall --no-deps rasterio')


def _read_geotiff() -> str:
    rasterio = import_module('rasterio')
    values = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
    with import_module('rasterio.io').MemoryFile() as memory:
        place = dict(crs='EPSG:32633', transform=import_module('rasterio.transform').from_origin(0, 0, 10, 10))
        with memory.open(driver='GTiff', count=6, height=20, width=30, dtype='uint16', **place) as file:
            file.write(values)
        with memory.open() as file:
            if not np.array_equal(file.read(), values):
                raise RuntimeError('a GeoTIFF is read differently than it was written')
    return f'{rasterio.__version__} reads GeoTIFF files'


def findings() -> Iterator[Check]:
    """Yield all checks, quickest first."""
    yield Check('Python', f'{platform.python_version()} at {sys.executable}')
    yield from find_recipes()
    yield from find_packages()
    yield from find_imports()
    yield from find_readers()
    yield from find_devices()
    yield from find_operations()
    yield from find_kernels()
    yield from find_kernel_times()
    yield from find_executions()
    yield from find_rasters()


def main() -> int:
    """Print the findings, and return the number of problems."""
    problems = 0
    for finding in findings():
        mark = 'BAD' if finding.is_problem else ' - ' if finding.advice else 'ok '
        print(f'{mark} {finding.name:26} {finding.found}')
        if finding.advice:
            print(f'    {"":26} {finding.advice}')
        problems += finding.is_problem
    print(f'{problems} problems' if problems else 'no problem found')
    return problems
