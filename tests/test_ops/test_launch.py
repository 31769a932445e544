"""Launches that skip Triton's launcher call the kernel that it would call, with the same arguments.

No GPU is needed: compiled kernels are stand-ins, one per key of Triton's own cache, that note their calls.
"""

from importlib import import_module

import pytest
import torch

pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mmconvnextv2.ops.dispatch import INTERPRETED
from mmconvnextv2.ops.kernels import launch as module
from mmconvnextv2.ops.kernels.launch import Launch

pytestmark = pytest.mark.skipif(INTERPRETED, reason='Triton interprets kernels here')


@triton.jit
def some_kernel(first, second, count, factor, TILE: tl.constexpr, FLAG: tl.constexpr):
    pass


class Driver:
    """A GPU's driver as far as launches ask it; -1 is the number of the CPU."""

    device, stream = -1, 7

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return self.stream

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)


class Kernel:
    """A compiled kernel that notes its calls: grid, stream, and arguments, tensors by their address."""

    packed_metadata = ()

    def __init__(self, function, calls):
        self.function, self.calls = function, calls

    def launch_metadata(self, *args):
        return None

    def run(self, x, y, z, stream, function, packed, metadata, enter, exit, *arguments):
        assert function == self.function and metadata is None
        addresses = [one.data_ptr() if isinstance(one, torch.Tensor) else one for one in arguments]
        self.calls.append((self.function, (x, y, z), stream, addresses))


class Compiled(dict):
    """Triton's cache, which has a kernel for every key that Triton asks for."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def get(self, key, default=None):
        return self.setdefault(key, Kernel(str(key), self.calls))


@pytest.fixture
def calls(monkeypatch):
    """Calls of compiled kernels."""
    noted, stand_in = [], Driver()
    monkeypatch.setattr(driver, '_active', stand_in)
    monkeypatch.setattr(module, 'KNOWN', True)
    create = some_kernel.create_binder
    monkeypatch.setattr(some_kernel, 'device_caches', {-1: (Compiled(noted), *create()[1:])})
    noted.clear()
    return noted


@pytest.fixture
def bypassed(monkeypatch):
    """Launches that go through Triton, by their tensors."""
    through, run = [], Launch._through_triton

    def noted(self, tensors):
        through.append(tensors)
        return run(self, tensors)

    monkeypatch.setattr(Launch, '_through_triton', noted)
    return through


def same_as_triton(launch, calls, *tensors):
    """Launch, let Triton launch the same, compare, and return the key of the kernel that served."""
    launch(*tensors)
    some_kernel[launch.grid](*tensors, *launch.numbers, **launch.constants)
    ours, theirs = calls[-2:]
    assert ours == theirs
    return ours[0]


def tensor(offset=0, dtype=torch.float32):
    memory = torch.zeros(64, dtype=dtype)
    start = -memory.data_ptr() // memory.element_size() % 16  # to an address divisible by 16
    return memory[start + offset :]


@pytest.mark.parametrize('numbers', [(1, 0.5), (32, 0.5), (33, 1.0), (2**40, 0.5)])
def test_known_arguments_need_no_launcher(calls, bypassed, numbers):
    """From the second call on Triton's launcher is not asked, whatever the numbers, and with or without a tensor, and
    streams may change."""
    launch = Launch(some_kernel, (3, 2), numbers, TILE=8, FLAG=True, num_warps=2)
    for tensors in ((tensor(), tensor()), (tensor(), None)):
        same_as_triton(launch, calls, *tensors)
        before = len(bypassed)
        for stream in (7, 9):
            driver.active.stream = stream
            same_as_triton(launch, calls, tensors[0].clone(), tensors[1])
            same_as_triton(launch, calls, tensor(), tensors[1])
        assert len(bypassed) == before


def test_kernels_are_not_mixed_up(calls, bypassed):
    """Addresses that are not divisible by 16, other dtypes and missing tensors get kernels of their own, in any
    order."""
    launch = Launch(some_kernel, (3,), (5, 0.5), TILE=8, FLAG=False)
    kinds = [
        (tensor(), tensor()),
        (tensor(1), tensor()),
        (tensor(), tensor(2)),
        (tensor(dtype=torch.bfloat16), tensor()),
        (tensor(), tensor(dtype=torch.bfloat16)),
        (tensor(), None),
    ]
    for _ in range(2):
        assert len({same_as_triton(launch, calls, *tensors) for tensors in kinds}) == len(kinds)
        assert len({same_as_triton(launch, calls, *tensors) for tensors in reversed(kinds)}) == len(kinds)
    aligned = [one for one in bypassed if all(each is None or each.data_ptr() % 16 == 0 for each in one)]
    assert len(aligned) == 4  # the first of each


def test_another_device_is_left_to_triton(calls, bypassed):
    """Tensors of a device that is not the current one go through Triton on theirs."""
    launch = Launch(some_kernel, (1,), (5, 0.5), TILE=8, FLAG=False)
    same_as_triton(launch, calls, tensor(), None)
    some_kernel.device_caches[0] = some_kernel.device_caches[-1]
    driver.active.device = 0
    before = len(bypassed)
    launch(tensor(), None)
    assert len(bypassed) == before + 1


def test_hooks_get_every_launch(calls, bypassed, monkeypatch):
    """A profiler's hook on launches, or on the kernel, hears of launches that would skip Triton's launcher."""
    launch, heard = Launch(some_kernel, (1,), (5, 0.5), TILE=8, FLAG=False), []
    for _ in range(2):
        launch(tensor(), None)
    before = len(bypassed)
    monkeypatch.setattr(some_kernel, 'pre_run_hooks', [lambda *args, **kwargs: heard.append(args)])
    launch(tensor(), None)
    monkeypatch.setattr(some_kernel, 'pre_run_hooks', [])
    assert len(heard) == 1 and len(bypassed) == before + 1
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, 'calls', [heard.append])
    launch(tensor(), None)
    assert len(bypassed) == before + 2


def test_unknown_versions_of_triton_launch_themselves(calls, bypassed, monkeypatch):
    """With another version of Triton, whose compiled kernels may take other arguments, its launcher serves."""
    monkeypatch.setattr(module, 'KNOWN', False)
    launch = Launch(some_kernel, (1,), (5, 0.5), TILE=8, FLAG=False)
    for _ in range(3):
        same_as_triton(launch, calls, tensor(), tensor())
    assert len(bypassed) == 3


@pytest.mark.skipif(not torch.__version__.startswith('2.11'), reason='the lock file has torch 2.11')
def test_version_of_the_lock_file_is_known():
    """The version of Triton that the lock file brings is one whose compiled kernels are called directly."""
    assert module.KNOWN, 'compare Launch._call with JITFunction.run of this version, then add it to VERSIONS'


def test_constants_come_last():
    """All kernels have their constants after tensors and numbers, as a Launch assumes."""
    found = 0
    for name in ('depthwise', 'gelu', 'layer_norm', 'parameters', 'residual', 'response'):
        for kernel in vars(import_module(f'mmconvnextv2.ops.kernels.{name}')).values():
            if isinstance(kernel, triton.JITFunction) and kernel.__name__.endswith('_kernel'):
                count, constants = len(kernel.arg_names), kernel.constexprs
                assert constants == list(range(count - len(constants), count)), kernel
                found += 1
    assert found >= 13
