"""Seconds, bytes kept for backward and peak memory of contestants that do the same work, side by side."""

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
    """Wait for the GPU, where there is one."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def race(steps, rounds, device):
    """Time the steps in turns. A turn is two steps, of which the second is timed: as in training, it follows one of its
    own kind, and does not pay for the caches and the heap that another contestant left.

    Args:
        steps (dict): name: function without arguments.
        rounds (int): Turns of each.
        device (torch.device): Waited for before the clock is read.

    Returns:
        dict: name: list of ``rounds`` seconds; equal indices were measured one after the other.
    """
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            gc.collect()
            step()
            wait(device)
            started = time.perf_counter()
            step()
            wait(device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(others, ours):
    """Return how many times longer others take, turn by turn: median, least, most."""
    ratios = [other / own for other, own in zip(others, ours)]
    return statistics.median(ratios), min(ratios), max(ratios)


def saved_bytes(function, model):
    """Count the bytes that autograd keeps between forward and backward, a shared storage once, parameters left out.

    Works on tensors without data, too.
    """
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = []  # the storages themselves, so that no address is used twice

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
    """Return what the process holds now."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def peak_bytes(step, device, steps=3):
    """Return the memory that a few steps need on top of what is held before them.

    On the CPU that is the growth of the process's largest resident size: measure one contestant a process.
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
    """Lay cells out as a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def machine(device, packages):
    """Describe date, processor or GPU, threads, load and versions in one line."""
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
