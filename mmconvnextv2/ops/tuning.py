"""Choice between Triton kernels and torch's operations by their time, where cuDNN may choose its algorithms that way.

With ``torch.backends.cudnn.benchmark`` (``env_cfg.cudnn_benchmark`` in configs) each operation is timed once per dtype
and bucket of size on the user's device, and the faster implementation stays. Process 0 chooses for all.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .autocast import autocast_dtype

WARM_UP, ROUNDS = 2, 5
ASKS = 100  # how often a process asks for process 0's choice of a size that it has not met
_chosen: dict[tuple, str] = {}
_seconds: dict[tuple, dict[str, float]] = {}
_asked: dict[tuple, int] = {}


def faster(
    operation: str, sites: Tensor, parameters: Sequence[Tensor], runs: Mapping[str, Callable[[Tensor], Tensor]]
) -> str:
    """Return the name of the fastest implementation for sites of this kind, measured at the first time.

    Args:
        operation (str): Name of the operation.
        sites (Tensor): Sites of shape (B, N, C).
        parameters (Sequence[Tensor]): Parameters whose gradients are part of the work where gradients are enabled.
        runs (Mapping): Functions of sites by name, the default first.
    """
    training = torch.is_grad_enabled() and any(one.requires_grad for one in (sites, *parameters))
    dtype, size = autocast_dtype(sites), (sites.shape[0] * sites.shape[1]).bit_length()
    key = operation, sites.device, dtype, training, sites.shape[2], size
    if key not in _chosen:
        default, *_ = runs
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return _shared_choice(key, lambda: _measure(key, sites, parameters, runs, training), default)
        _chosen[key] = _measure(key, sites, parameters, runs, training)
    return _chosen[key]


def measured() -> dict[tuple, dict[str, float]]:
    """Return the seconds of each implementation by key: operation, device, dtype, whether with gradients, channels, and
    the bits of the number of sites."""
    return _seconds


def _measure(key: tuple, sites: Tensor, parameters: Sequence[Tensor], runs: Mapping, training: bool) -> str:
    sites = sites.detach().clone().requires_grad_(training)
    wanted = [sites, *(one for one in parameters if one.requires_grad)] if training else []

    def step(run: Callable[[Tensor], Tensor]) -> None:
        output = run(sites)
        if wanted:
            torch.autograd.grad(output, wanted, torch.ones_like(output))

    try:
        for run in runs.values():
            for _ in range(WARM_UP):
                step(run)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                times[name].append(_time(partial(step, run), sites))
    except torch.OutOfMemoryError:  # the comparison needs more memory than the step itself
        return next(iter(runs))
    _seconds[key] = {name: statistics.median(found) for name, found in times.items()}
    return min(_seconds[key], key=_seconds[key].__getitem__)


def _time(step: Callable[[], None], sites: Tensor) -> float:
    if not sites.is_cuda:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(sites.device):
        begin.record()
        step()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _shared_choice(key: tuple, measure: Callable[[], str], default: str) -> str:
    """Return process 0's choice, or the default while it has none; a choice may not wait for another process, which may
    have images of another size."""
    operation, device, *rest = key
    name = '/'.join(map(str, ('mmconvnextv2', operation, device.type, *rest)))
    store = torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        _chosen[key] = measure()
        store.set(name, _chosen[key])
    elif store.check([name]):
        _chosen[key] = store.get(name).decode()
    else:
        _asked[key] = _asked.get(key, 0) + 1
        if _asked[key] < ASKS:
            return default
        _chosen[key] = default
    return _chosen[key]
