"""Launches of Triton kernels at the cost of a dictionary look-up.

``kernel[grid](...)`` binds its arguments by name, derives from each what the compiled kernel may assume (dtypes,
addresses divisible by 16, numbers that are 1 or divisible by 16), and looks the kernel up by a string made of all that:
about 12 us of Python per launch, more than many kernels run. A :class:`Launch` fixes everything but the tensors. Its
first call goes through Triton, which compiles and returns the kernel. Later calls on the same device with tensors of
the same dtypes call that kernel as Triton does. Calls go through Triton again where this would be wrong or unknown:

- an address is not divisible by 16, as of some views: the kept kernel assumes that all are;
- hooks of profilers on launches are set: Triton passes them the arguments;
- kernels are interpreted, run on another backend than CUDA, or Triton's interface is not the one of ``VERSIONS``.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from ..dispatch import INTERPRETED

VERSIONS = ('3.6',)  # of Triton, whose compiled kernels are called in the way of ``Launch._call``
KNOWN = not INTERPRETED and triton.__version__.rsplit('.', 1)[0] in VERSIONS
sized = lru_cache(maxsize=4096)  # for functions from sizes to a Launch; images of many sizes make many of them


class Launch:
    """A kernel with its grid, its numbers and its compile-time constants; called with its tensors.

    Args:
        kernel (triton.JITFunction): Kernel whose parameters are tensors, then numbers, then constants.
        grid (tuple[int]): Programs along up to three axes.
        numbers (tuple): Numbers, in the kernel's order. Defaults to ().
        constants: Compile-time constants by name, and options of Triton such as ``num_warps``.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple[float, ...] = (), **constants: Any) -> None:
        self.kernel, self.numbers, self.constants = kernel, numbers, constants
        self.grid = (*grid, 1, 1)[:3]
        self._calls: dict[tuple, Callable[[list], None]] = {}  # by device and dtypes

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the device of the first tensor and on its current stream; None is a tensor that there is not."""
        if not KNOWN or _is_watched(self.kernel):
            return self._through_triton(tensors)
        device = tensors[0].get_device()  # type: ignore[union-attr]  # never None
        key = (device, *[None if tensor is None else tensor.dtype for tensor in tensors])
        addresses, bits = [None if tensor is None else tensor.data_ptr() for tensor in tensors], 0
        for address in addresses:
            bits |= address or 0
        call = self._calls.get(key)
        if bits % 16 or device != driver.active.get_current_device():
            return self._through_triton(tensors)
        if call is None:
            self._calls[key] = self._call(self._through_triton(tensors), device)
        else:
            call(addresses)

    def _through_triton(self, tensors: tuple[Tensor | None, ...]) -> Any:
        """Launch as Triton documents it, and return the compiled kernel."""
        with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
            return self.kernel[self.grid](*tensors, *self.numbers, **self.constants)

    def _call(self, compiled: Any, device: int) -> Callable[[list], None]:
        """Return a function from addresses to a launch, as at the end of ``triton.JITFunction.run``."""
        run, function, metadata, grid = compiled.run, compiled.function, compiled.packed_metadata, self.grid
        stream_of = driver.active.get_current_stream
        names = self.kernel.arg_names[len(self.kernel.arg_names) - len(self.kernel.constexprs) :]
        rest = (*self.numbers, *[self.constants[name] for name in names])

        def call(addresses: list[int | None]) -> None:
            # No metadata and no hooks: only a hook reads metadata
            run(*grid, stream_of(device), function, metadata, None, None, None, *addresses, *rest)

        return call


def _is_watched(kernel: Any) -> bool:
    """Return whether someone, such as Triton's profiler, hooked into launches."""
    knobs = triton.knobs.runtime
    return bool(knobs.launch_enter_hook.calls or knobs.launch_exit_hook.calls or kernel.pre_run_hooks)
