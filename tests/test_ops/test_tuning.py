"""Implementations are chosen by their time, once per kind of work, and alike in all processes."""

import time
from datetime import timedelta

import pytest
import torch
from torch import multiprocessing

from mmconvnextv2.ops import tuning

SITES = torch.ones(2, 5, 3)


@pytest.fixture(autouse=True)
def nothing_chosen():
    tuning._chosen.clear()
    tuning._seconds.clear()
    yield
    tuning._chosen.clear()
    tuning._seconds.clear()


def waiting(seconds, calls):
    """Return an implementation that takes its time."""

    def run(sites):
        calls.append(sites.shape)
        time.sleep(seconds)
        return sites * 2

    return run


def test_fastest_is_measured_once_per_kind():
    """The fastest implementation is chosen once per operation, dtype, channels, size within a factor of two, and
    whether there are gradients."""
    calls = []
    runs = dict(slow=waiting(0.02, calls), fast=waiting(0.0, calls))
    each = len(runs) * (tuning.WARM_UP + tuning.ROUNDS)
    kinds = [
        ('a', SITES),
        ('b', SITES),
        ('a', SITES.double()),
        ('a', torch.ones(2, 5, 4)),
        ('a', torch.ones(4, 5, 3)),
        ('a', SITES.clone().requires_grad_()),
    ]
    for count, (operation, sites) in enumerate(kinds, start=1):
        assert [tuning.faster(operation, sites, [], runs) for _ in range(2)] == ['fast', 'fast']
        assert len(calls) == count * each
    assert tuning.faster('a', torch.ones(2, 6, 3), [], runs) == 'fast' and len(calls) == len(kinds) * each
    assert all(times['slow'] > 0.015 > times['fast'] for times in tuning.measured().values())


def test_gradients_are_part_of_the_work():
    """Where gradients are needed they are timed too, of sites and parameters, and none is left behind."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, sites, weight, seconds):
            ctx.seconds = seconds
            return sites * weight

        @staticmethod
        def backward(ctx, grad):
            time.sleep(ctx.seconds)
            return grad, grad.sum(), None

    weight = torch.ones((), requires_grad=True)
    runs = {
        name: lambda sites, one=seconds: Double.apply(sites, weight, one)
        for name, seconds in dict(a=0.02, b=0.0).items()
    }
    assert tuning.faster('a', SITES, [weight], runs) == 'b' and weight.grad is None
    with torch.no_grad():
        tuning.faster('a', SITES, [weight], runs)
    assert [times['a'] > 0.015 for times in tuning.measured().values()] == [True, False]


def test_default_where_memory_is_short():
    """A comparison that runs out of memory leaves the default."""

    def large(sites):
        raise torch.OutOfMemoryError

    assert tuning.faster('a', SITES, [], dict(default=waiting(0.01, []), large=large)) == 'default'


def choose(rank, meeting, results):
    """Choose in one of two processes, whose times are opposite."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{meeting}', rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    runs = dict(one=waiting(0.01 * rank, []), other=waiting(0.01 * (1 - rank), []))
    found = []
    if rank == 1:
        found.append(tuning.faster('only here', SITES, [], dict(other=runs['other'], one=runs['one'])))
        torch.distributed.barrier()
    found.append(tuning.faster('both', SITES, [], dict(other=runs['other'], one=runs['one'])))
    if rank == 0:
        torch.distributed.barrier()
    torch.distributed.barrier()
    if rank == 1:
        found.append(tuning.faster('both', SITES, [], runs))
    results.put((rank, found))
    torch.distributed.destroy_process_group()


def test_processes_choose_alike(tmp_path):
    """Process 0 chooses for all; another process keeps the default, without waiting, until there is a choice."""
    context = multiprocessing.get_context('spawn')
    results = context.Queue()
    processes = [context.Process(target=choose, args=(rank, tmp_path / 'meeting', results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    assert found[0] == ['one'] and found[1][0] == 'other' and found[1][2] == 'one'
