"""Measurement of seconds, bytes kept for backward and peak memory of contestants that do the same work."""

import datetime
import gc
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def wait(device):
    """Wait for the device if it is a GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def race(steps, rounds, device, clock=time.perf_counter):
    """Time steps in turns.

    A turn consists of two steps, of which the second is timed. As in training, it follows a step of the same kind, and
    so does not depend on the caches and the heap that another contestant left.

    Args:
        steps (dict): Function without arguments for each name.
        rounds (int): Number of turns of each step.
        device (torch.device): Device to wait for before the clock is read.
        clock (Callable): Seconds so far. Defaults to ``time.perf_counter``.

    Returns:
        dict: List of ``rounds`` seconds for each name; values of equal index were measured one after the other.
    """
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            gc.collect()
            step()
            wait(device)
            started = clock()
            step()
            wait(device)
            seconds[name].append(clock() - started)
    return seconds


def ratio(others, ours):
    """Return how many times longer others take than ours in each turn: median, minimum, maximum."""
    ratios = [other / own for other, own in zip(others, ours)]
    return statistics.median(ratios), min(ratios), max(ratios)


def saved_bytes(function, model):
    """Count the bytes that autograd keeps between forward and backward, without parameters, shared storages once.

    Works on tensors without data, too.
    """
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = []  # references to the storages, so that no address is reused

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(storage.nbytes() for storage in kept)


def resident_bytes():
    """Return the current resident bytes of the process."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def peak_bytes(step, device, steps=3):
    """Return the peak memory of a few steps beyond what was allocated before them, in bytes.

    On the CPU this is the growth of the process's peak resident size, so measure only one contestant per process.
    """
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    else:
        held = resident_bytes()
    for _ in range(steps):
        step()
    wait(device)
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) - held
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held


def table(header, rows):
    """Format cells as a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def machine(device, packages):
    """Return one line with the date, processor or GPU, threads, load and versions."""
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    else:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        hardware = next(
            (line.split(':')[1].strip() for line in lines if line.startswith('model name')),
            platform.processor() or 'unknown processor',
        )
        hardware += f', {torch.get_num_threads()} threads, no GPU'
    versions = ', '.join(f'{name} {_version(name)}' for name in packages)
    return (
        f'{datetime.date.today()}: {hardware}; load average {os.getloadavg()[0]:.2f} at the start; '
        f'Python {sys.version.split()[0]}, {versions}'
    )


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return 'absent'
