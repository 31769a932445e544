"""``python -m mmconvnextv2.doctor`` tells what is installed, what works with it, and what to do about the rest.

Every line is found by using the part, a forward, a compiled operation, an import, and not by its version alone.
"""
import platform
import sys
from importlib import import_module, metadata
from typing import Callable, Iterator, NamedTuple, Optional

import torch

from .backbone import ConvNeXtV2
from .execution import EXECUTIONS
from .execution.minkowski import import_minkowski_engine
from .versions import WORKING

USED_FOR = {'mmcv': 'detection, segmentation and FCMAE', 'mmdet': 'detection', 'mmsegmentation': 'segmentation',
            'mmpretrain': 'FCMAE and classification'}
FORKS = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection',
         'mmsegmentation': 'onedl-mmsegmentation', 'mmpretrain': 'onedl-mmpretrain'}


class Finding(NamedTuple):
    """One line of the report.

    Args:
        name (str): What was looked at.
        found (str): What was seen.
        advice (str, optional): What to do. Defaults to None, nothing.
        is_problem (bool): Whether something that is installed does not work. Defaults to False.
    """
    name: str
    found: str
    advice: Optional[str] = None
    is_problem: bool = False


def version_of(distribution: str) -> Optional[str]:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def tried(name: str, action: Callable[[], str], advice: str) -> Finding:
    """Run ``action``; its text is what was found, an exception a problem."""
    try:
        return Finding(name, action())
    except Exception as error:  # whatever a broken install raises is the finding
        return Finding(name, f'{type(error).__name__}: {error}'.splitlines()[0], advice, is_problem=True)


def find_packages() -> Iterator[Finding]:
    """Look at the stack's packages and at forks that overwrite them."""
    for name in WORKING:
        found, fork = version_of(name), version_of(FORKS.get(name, name)) if name in FORKS else None
        if found and fork:
            yield Finding(name, f'{found}, and {FORKS[name]} {fork}', 'both write the same files: pip uninstall one of '
                          'them, then install the other with --force-reinstall --no-deps', is_problem=True)
        elif found or fork:
            yield Finding(name, found or f'{FORKS[name]} {fork}')
        else:
            needed = USED_FOR.get(name, 'everything')
            yield Finding(name, 'not installed', f'needed for {needed}; `make env` installs it')


def find_devices() -> Iterator[Finding]:
    """Look at CUDA devices, and whether bf16 works on them."""
    if not torch.cuda.is_available():
        advice = None if torch.version.cuda is None else 'with a GPU in the machine: check its driver with nvidia-smi'
        yield Finding('CUDA', f'no device (torch built for CUDA {torch.version.cuda})', advice)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            half = 'bf16' if torch.cuda.is_bf16_supported() else 'no bf16: use optim_wrapper.type=FP16OptimWrapper'
        yield Finding(f'cuda:{index}', f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {half}')


def find_operations() -> Iterator[Finding]:
    """Use mmcv's compiled operations on the CPU and, where there is one, on a GPU; import the optional engines."""
    if version_of('mmcv') or version_of(FORKS['mmcv']):
        yield tried('mmcv operations, CPU', lambda: _suppress('cpu'),
                    'mmcv has no compiled operations, or those of another torch: reinstall it, or make the environment '
                    'anew with `make env`')
        if torch.cuda.is_available():
            yield tried('mmcv operations, CUDA', lambda: _suppress('cuda'),
                        'mmcv was built for the CPU alone: FORCE_CUDA=1 make env, with the CUDA toolkit of torch')
    if version_of('MinkowskiEngine'):
        yield tried('MinkowskiEngine', lambda: import_minkowski_engine().__version__, '`make minkowski` builds it anew')
    else:
        yield Finding('MinkowskiEngine', 'not installed', 'only for execution=minkowski; `make minkowski` installs it')


def _suppress(device: str) -> str:
    """Run mmcv's non-maximum suppression on two equal boxes."""
    boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.]], device=device)
    _, kept = import_module('mmcv.ops').nms(boxes, torch.tensor([.9, .8], device=device), 0.5)
    if kept.tolist() != [0]:
        raise RuntimeError(f'nms kept {kept.tolist()} of two equal boxes')
    return 'work'


def find_executions() -> Iterator[Finding]:
    """Run a narrow backbone forward and backward in every execution and on every kind of device."""
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        for name, execution in EXECUTIONS.items():
            if name == 'minkowski' and (device == 'cuda' or not version_of('MinkowskiEngine')):
                continue
            yield tried(f'execution={name}, {device}', lambda: _step(device, execution.masks, name), 'please report it')


def _step(device: str, masks: bool, execution: str) -> str:
    model = ConvNeXtV2(dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8)), out_indices=(3, )).to(device)
    cells = torch.arange(2, device=device).expand(2, 2) if masks else None
    images = torch.randn(2, 3, 64, 64, device=device)
    model(images, cells, execution)[0].square().mean().backward()
    return 'works'


def findings() -> Iterator[Finding]:
    """Yield everything, quickest first."""
    yield Finding('Python', f'{platform.python_version()} at {sys.executable}')
    yield from find_packages()
    yield from find_devices()
    yield from find_operations()
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


if __name__ == '__main__':
    sys.exit(min(main(), 1))
