"""Measure images per second and peak memory per process of FCMAE with one and two processes; write scaling.md.

    python benchmarks/scaling.py                    # about five minutes on two idle cores
    python benchmarks/scaling.py --rounds 1 --steps 5 --size atto

Single-threaded processes train the recipe's model over gloo, each on its own images. One process and two take turns, so
that other work on the machine affects both. Nothing is read from disk.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from measure import machine, table
from torch import nn

MIB = 2**20
PACKAGES = ('torch', 'mmengine', 'mmpretrain')


class Loss(nn.Module):
    """FCMAE with the loss as ``forward``, which DDP needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, samples):
        return self.model.loss(images, samples)['loss']


def work(args):
    """Train in one process of a group; the first one writes the seconds and all peaks."""
    from cost import build, random_batch

    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Loss(build(args.size)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    images, samples = random_batch(args.batch, args.side)
    seconds = []
    for _ in range(args.warm_up + args.steps):
        dist.barrier()
        started = time.perf_counter()
        model(images, samples).backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    peaks = [None] * dist.get_world_size()
    dist.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if dist.get_rank() == 0:
        Path(args.worker).write_text(json.dumps(dict(seconds=seconds[args.warm_up :], peaks=peaks)))
    dist.destroy_process_group()


def run(processes, args):
    """Start a group of processes, and return the seconds of its steps and the peak bytes of its processes."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, 'result.json')
        command = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc-per-node={processes}',
            __file__,
            *sys.argv[1:],
            '--worker',
            str(result),
        ]
        subprocess.run(command, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''})
        return json.loads(result.read_text())


def report(found, args):
    """Return the table: median over rounds of the rounds' medians, and their range."""
    rows, alone = [], None
    for processes, runs in found.items():
        rates = [processes * args.batch / statistics.median(one['seconds']) for one in runs]
        rate = statistics.median(rates)
        alone = alone or rate
        peaks = [peak / MIB for one in runs for peak in one['peaks']]
        rows.append(
            [
                processes,
                f'{rate:.2f} ({min(rates):.2f} to {max(rates):.2f})',
                f'{100 * rate / alone / processes:.0f} %',
                f'{statistics.median(peaks):.0f}',
            ]
        )
    return table(['processes', 'images per second', 'per process, relative', 'peak resident MiB per process'], rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='tiny')
    parser.add_argument('--batch', type=int, default=8, help='images per process')
    parser.add_argument('--side', type=int, default=224, help='side of the images in pixels')
    parser.add_argument('--steps', type=int, default=15, help='timed steps per turn')
    parser.add_argument('--warm-up', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=4, help='turns per number of processes')
    parser.add_argument('--out', default='benchmarks/scaling.md')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.worker:
        work(args)
        return
    torch.set_num_threads(1)
    hardware = machine(torch.device('cpu'), PACKAGES).replace('1 threads', 'one thread per process')
    found = {1: [], 2: []}
    for _ in range(args.rounds):
        for processes, runs in found.items():
            runs.append(run(processes, args))
    text = (
        f'# One and two processes\n\nWritten by `benchmarks/scaling.py` on {hardware}.\nFCMAE, {args.size}, '
        f'packed, float32, {args.batch} images of {args.side} pixels per process: forward, backward with DDP over '
        f'gloo, AdamW step; {args.rounds} turns of {args.steps} steps each, alternating. Brackets show the range over '
        f'the turns.\n\n{report(found, args)}\n'
    )
    Path(args.out).write_text(text)
    print(text)


if __name__ == '__main__':
    main()
