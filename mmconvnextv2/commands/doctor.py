"""``python -m mmconvnextv2 doctor``: what is installed, what works, and how to fix what does not.

Every line is found by using the part, a forward, a compiled operation, an import, and not by its version alone.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from ..mmcv_operators import serving_operators
from ..models.convnext_v2 import ConvNeXtV2
from ..models.execution import EXECUTIONS
from ..models.execution.minkowski import import_minkowski_engine
from ..ops.dispatch import HAS_TRITON, use_triton
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
    'compiled for another torch, or for the CPU alone: MMCONVNEXTV2_OPERATORS=torchvision takes those '
    'of torchvision; for good, pip uninstall mmcv, then pip install mmcv-lite==2.1.0 --no-deps'
)


class Check(NamedTuple):
    """One line of the report.

    Args:
        name (str): What was looked at.
        found (str): What was seen.
        advice (str, optional): What to do. Defaults to None, nothing.
        is_problem (bool): Whether something that is installed does not work. Defaults to False.
    """

    name: str
    found: str
    advice: str | None = None
    is_problem: bool = False


def try_check(name: str, action: Callable[[], str], advice: str) -> Check:
    """Run ``action``; its text is what was found, an exception a problem."""
    try:
        return Check(name, action())
    except Exception as error:  # whatever a broken install raises is the finding
        return Check(name, f'{type(error).__name__}: {error}'.splitlines()[0], advice, is_problem=True)


def find_packages() -> Iterator[Check]:
    """Look at the stack's packages, at forks that overwrite them, and at mixtures of both."""
    for name in WORKING:
        others = [other for other in (LITE.get(name), FORKS.get(name)) if other and installed_version(other)]
        found = [installed_version(name)] * bool(installed_version(name))
        found += [f'{other} {installed_version(other)}' for other in others]
        if len(found) > 1:
            yield Check(
                name,
                ', and '.join(found),
                'they write the same files: pip uninstall all but one, then '
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
            f"needed for {USED_FOR[name]}; pip install 'mmconvnextv2[ops]' adds {LITE[name]}, and compiles nothing",
        )
    return Check(name, 'not installed', f'needed for {USED_FOR.get(name, "everything")}; `make env` installs it')


def find_mixture() -> Iterator[Check]:
    """Tell when some packages are upstream's and others the forks': each family is tested with itself alone."""
    upstream = [name for name in FORKS if installed_version(name)]
    forks = [fork for name, fork in FORKS.items() if name not in upstream and installed_version(fork)]
    if upstream and forks:
        yield Check(
            'mixed packages',
            f'{", ".join(upstream)} of upstream with {", ".join(forks)}',
            'they were not made for each other: pip uninstall one side, then install its packages of the other side',
            is_problem=True,
        )


def find_imports() -> Iterator[Check]:
    """Import what is installed, as far as recipes need it: the packages refuse each other's versions there, and miss
    what they did not ask for."""
    for name, module in MODULES.items():
        if installed_version(name) or installed_version(FORKS[name]):
            yield try_check(
                f'import {module}',
                lambda: import_module(f'{module}.utils') and f'{import_module(module).__version__} works',
                'install what its message names, or the set of requirements/lock.txt',
            )


def find_recipes() -> Iterator[Check]:
    """Count the configs and tools that travel in the package."""
    configs, tools = (len(list((HOME / '.mim' / kind).rglob('*.py'))) for kind in ('configs', 'tools'))
    missing = None if configs and tools else 'the package is incomplete: pip install --force-reinstall mmconvnextv2'
    yield Check(
        'mmconvnextv2',
        f'{__version__} at {HOME}, {configs} configs, {tools} tools',
        missing,
        is_problem=missing is not None,
    )


def find_devices() -> Iterator[Check]:
    """Look at CUDA devices, and whether bf16 works on them."""
    if not torch.cuda.is_available():
        yield _no_device()
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            half = 'bf16' if torch.cuda.is_bf16_supported() else 'no bf16: use optim_wrapper.type=FP16OptimWrapper'
        yield Check(f'cuda:{index}', f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {half}')


def _no_device() -> Check:
    found = f'no device for torch, built for CUDA {torch.version.cuda}'
    if not _lists_gpu():
        return Check('CUDA', found, 'the machine shows no GPU either; with one in it, check its driver')
    if os.environ.get('CUDA_VISIBLE_DEVICES') is not None:
        return Check('CUDA', found, f'CUDA_VISIBLE_DEVICES={os.environ["CUDA_VISIBLE_DEVICES"]!r} hides the GPU')
    return Check(
        'CUDA',
        found,
        'nvidia-smi shows a GPU: install a torch built for CUDA that its driver supports',
        is_problem=True,
    )


def _lists_gpu() -> bool:
    try:
        return 'GPU' in subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_operations() -> Iterator[Check]:
    """Use mmcv's operators on the CPU and, where there is one, on each GPU; import the optional engines."""
    if any(map(installed_version, ('mmcv', LITE['mmcv'], FORKS['mmcv']))):
        for device in ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]:
            yield try_check(f'mmcv operators, {device}', lambda: _use_operators(device), OPERATORS_ADVICE)
    if installed_version('MinkowskiEngine'):
        yield try_check(
            'MinkowskiEngine', lambda: import_minkowski_engine().__version__, '`make minkowski` builds it anew'
        )
    else:
        yield Check('MinkowskiEngine', 'not installed', 'only for execution=minkowski; `make minkowski` installs it')


def _use_operators(device: str) -> str:
    """Suppress one of two equal boxes, pool a map over the other."""
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
    """Tell on which devices the fused operations run as kernels."""
    devices = ['cpu'] + ['cuda'] * torch.cuda.is_available()
    served = [device for device in devices if use_triton(torch.zeros(1, device=device))]
    advice = None
    if 'cuda' in set(devices) - set(served):
        advice = 'unset MMCONVNEXTV2_KERNELS' if HAS_TRITON else 'pip install triton makes CUDA faster'
    yield Check('fused kernels', f'on {", ".join(served)}' if served else "none: torch's own operations", advice)


def find_executions() -> Iterator[Check]:
    """Run a narrow backbone forward and backward in every execution and on every kind of device."""
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


def findings() -> Iterator[Check]:
    """Yield everything, quickest first."""
    yield Check('Python', f'{platform.python_version()} at {sys.executable}')
    yield from find_recipes()
    yield from find_packages()
    yield from find_imports()
    yield from find_devices()
    yield from find_operations()
    yield from find_kernels()
    yield from find_executions()


def main() -> int:
    """Print the findings; return how many are problems."""
    problems = 0
    for finding in findings():
        mark = 'BAD' if finding.is_problem else ' - ' if finding.advice else 'ok '
        print(f'{mark} {finding.name:26} {finding.found}')
        if finding.advice:
            print(f'    {"":26} {finding.advice}')
        problems += finding.is_problem
    print(f'{problems} problems' if problems else 'no problem found')
    return problems
