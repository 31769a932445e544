"""Compare the executions of FCMAE: loss on the same weights and masks, seconds and peak memory a step on the CPU.

Example: python benchmarks/fcmae_executions.py --sizes atto tiny base --out benchmarks/fcmae.md

Each execution of each size runs in processes of its own, in turns, since a process has one memory peak.
"""
import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

EXECUTIONS = ('packed', 'masked', 'minkowski')
CONTROL = 'leaky'  # wrong on purpose: shows how far the loss moves when convolutions read hidden sites
SIDE, MASK_RATIO, WARM_UP = 224, 0.6, 2


def build_model(size, execution):
    """Build FCMAE with weights drawn from a fixed seed.

    The usual standard deviation of 0.02 with GRN at the identity would make the loss nearly blind to the encoder: here
    weights keep the variance of what passes, and no parameter is zero.
    """
    import torch

    from mmconvnextv2.pretrain import FCMAE
    torch.manual_seed(0)
    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch=size, out_indices=(3, ), out_norm=False),
        neck=dict(type='FCMAEDecoder'),
        head=dict(type='FCMAEHead'),
        execution=execution)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float(name.endswith('weight')), std=0.3)
    return model.train()


def make_batch(batch):
    """Draw pictures and masks from a fixed seed."""
    import torch
    from mmpretrain.structures import DataSample

    from mmconvnextv2.pretrain.masking import num_visible
    torch.manual_seed(1)
    images, cells = torch.randn(batch, 3, SIDE, SIDE), (SIDE // 32)**2
    masks = [torch.randperm(cells)[:num_visible(cells, MASK_RATIO)].sort().values.numpy() for _ in range(batch)]
    return images, [DataSample(metainfo=dict(visible_cells=mask)) for mask in masks]


def measure(size, execution, batch, steps):
    """Return the first step's loss, the seconds of each step after the warm-up, and memory in MiB."""
    import torch
    model, (images, samples) = build_model(size, execution), make_batch(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    idle = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 2**20
    losses, seconds = [], []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        loss = model.loss(images, samples)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    difference = feature_difference(size, execution, images, samples)
    return dict(loss=losses[0], seconds=seconds[WARM_UP:], idle=idle, peak=peak, features=difference)


def feature_difference(size, execution, images, samples):
    """Return the distance of the encoder's visible features to those of ``masked``, relative to their norm."""
    import torch

    from mmconvnextv2.pretrain.masking import stack_visible_cells
    backbone, cells = build_model(size, execution).backbone, stack_visible_cells(samples, images.device)
    with torch.no_grad():
        reference = backbone(images, cells, 'masked')[-1]
        features = backbone(images, cells, execution)[-1].where(reference != 0, 0)
    return ((features - reference).norm() / reference.norm()).item()


def run_worker(size, execution, args):
    """Run :func:`measure` in a new process."""
    command = [sys.executable, __file__, '--batch', str(args.batch), '--steps', str(args.steps)]
    run = subprocess.run([*command, '--worker', size, execution], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def compare(size, args):
    """Measure every execution of one size, in turns, as table rows. An unexpected loss stops the run."""
    runs = {execution: [] for execution in (*EXECUTIONS, CONTROL)}
    for _ in range(args.rounds):
        for execution in runs:
            runs[execution].append(run_worker(size, execution, args))
    reference, rows = runs['masked'][0]['loss'], []
    for execution, found in runs.items():
        difference = abs(found[0]['loss'] / reference - 1)
        if (difference > 1e-5) != (execution == CONTROL):
            raise SystemExit(f'{size}, {execution}: unexpected loss {found[0]["loss"]} beside masked {reference}')
        seconds = [second for run in found for second in run['seconds']]
        rows.append(f'| {size} | {execution} | {found[0]["loss"]:.7f} | {difference:.1e} | '
                    f'{found[0]["features"]:.1e} | {statistics.median(seconds):.3f} | '
                    f'{min(seconds):.3f} to {max(seconds):.3f} | '
                    f'{max(run["peak"] for run in found):.0f} | '
                    f'{max(run["peak"] - run["idle"] for run in found):.0f} |')
        print(rows[-1], flush=True)
    return rows


def machine():
    """Describe the processor, its threads and the versions in one line."""
    import torch
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    model = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), 'unknown processor')
    versions = ', '.join(f'{name} {version(name)}' for name in ('torch', 'mmengine', 'mmpretrain', 'MinkowskiEngine'))
    return f'{model}, {torch.get_num_threads()} threads, no GPU; Python {sys.version.split()[0]}, {versions}'


def write_table(rows, args):
    """Write the table with what it was measured on."""
    text = f'''# FCMAE: three executions, one function

Written by `benchmarks/fcmae_executions.py` on {datetime.date.today()}: {machine()}.
Batch {args.batch} of {SIDE} x {SIDE} pixels, mask ratio {MASK_RATIO}, float32, forward, backward and AdamW step.
Seconds are the median, and the range, of {args.rounds} x {args.steps} steps after {WARM_UP} of warm-up, in turns;
the load average was {args.load:.2f} before the first (other work on the same cores widens the ranges).
Memory is the peak resident size of the process, and what of it came on top of the process before its first step
(libraries, model and pictures); the optimizer's state is included.
Differences are relative to `masked`, before the first update; features are the encoder's at visible cells. `leaky`,
whose convolutions read across the mask, is the control: a comparison that could not tell it apart would prove nothing.

| size | execution | loss | loss differs | features differ | s a step | range | peak MiB | of it in steps |
|---|---|---|---|---|---|---|---|---|
''' + '\n'.join(rows) + '\n'
    Path(args.out).write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['atto', 'tiny', 'base'])
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--out', default='benchmarks/fcmae.md')
    parser.add_argument('--worker', nargs=2, metavar=('SIZE', 'EXECUTION'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(*args.worker, args.batch, args.steps)))
        return
    rows, args.load = [], os.getloadavg()[0]
    for size in args.sizes:
        rows += compare(size, args)
        write_table(rows, args)


if __name__ == '__main__':
    main()
