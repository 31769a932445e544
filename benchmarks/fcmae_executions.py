"""Compare the executions of FCMAE: loss for the same weights and masks, seconds and peak memory per step on the CPU.

Example: python benchmarks/fcmae_executions.py --sizes atto tiny base --out benchmarks/fcmae.md
MP-MAE: python benchmarks/fcmae_executions.py --mp-mae --sizes tiny atto --batch 2 --out benchmarks/fcmae.md

Executions and sizes take turns, each in a separate process, since a process has only one memory peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from measure import machine, peak_bytes, ratio, resident_bytes, table

EXECUTIONS = ('packed', 'masked', 'minkowski')
CONTROL = 'leaky'  # wrong on purpose: shows how much the loss changes if convolutions read masked sites
SIDE, MASK_RATIO, WARM_UP, CPU, MIB = 224, 0.6, 2, torch.device('cpu'), 2**20
SECTION = '## MP-MAE: packed and masked\n'
MP_MAE_HEADER = ('size', 'packed, CPU s', 'masked, CPU s', 'ratio', 'packed, s', 'masked, s', 'ratio', 'loss differs')
MP_MAE = 'configs/fcmae/fcmae_convnextv2-{}_mp-mae_64xb64-200e_mmearth.py'
PACKAGES = ('torch', 'mmengine', 'mmpretrain', 'MinkowskiEngine')
HEADER = (
    'size',
    'execution',
    'loss',
    'loss differs',
    'features differ',
    's per step',
    'range',
    'peak MiB',
    'of it in steps',
)


def measure(size, execution, batch, steps):
    """Return the first step's loss, the seconds of each step after the warm-up, and memory in MiB."""
    from contestants import fcmae

    build = partial(fcmae, size, execution, fused=True, batch=batch, side=SIDE, mask_ratio=MASK_RATIO, device=CPU)
    contestant, seconds, idle = build(), [], resident_bytes()

    def step():
        started = time.perf_counter()
        contestant.step()
        seconds.append(time.perf_counter() - started)

    peak = idle + peak_bytes(step, CPU, WARM_UP + steps)
    contestant = build()  # rebuilt after the peak is measured, with the initial weights
    return dict(
        loss=contestant.loss().item(),
        seconds=seconds[WARM_UP:],
        idle=idle / MIB,
        peak=peak / MIB,
        features=feature_difference(contestant.model.backbone, execution, batch),
    )


@torch.no_grad()
def feature_difference(backbone, execution, batch):
    """Return the distance between the encoder's visible features and those of ``masked``, relative to their norm."""
    from contestants import random_images, samples

    from mmconvnextv2.pretrain.masking import stack_visible_cells

    images = random_images(batch, SIDE, CPU)
    cells = stack_visible_cells(samples(batch, SIDE, MASK_RATIO), images.device)
    reference = backbone(images, cells, 'masked')[-1]
    features = backbone(images, cells, execution)[-1].where(reference != 0, 0)
    return ((features - reference).norm() / reference.norm()).item()


def compare_mp_mae(size, args):
    """Measure packed and masked MP-MAE of MMEarth's recipe in turns, and return a table row."""
    from contestants import mpmae

    build = partial(mpmae, MP_MAE.format(size[0]), batch=args.batch, side=112, mask_ratio=MASK_RATIO, device=CPU)
    contestants = {execution: build(execution) for execution in ('packed', 'masked')}
    for one in contestants.values():
        one.step()  # warm-up; its learning rate is next to 0
    losses = {name: one.loss().item() for name, one in contestants.items()}
    if abs(losses['packed'] / losses['masked'] - 1) > 1e-5:
        raise SystemExit(f'{size}: unexpected losses {losses}')
    seconds = {clock: {name: [] for name in contestants} for clock in (time.process_time, time.perf_counter)}
    for _ in range(args.steps):
        for name, one in contestants.items():
            started = [clock() for clock in seconds]
            one.step()
            for (clock, by_name), start in zip(seconds.items(), started):
                by_name[name].append(clock() - start)
    row = [size]
    for by_name in seconds.values():
        times, low, high = ratio(by_name['masked'], by_name['packed'])
        row += [f'{statistics.median(by_name[name]):.3f}' for name in contestants]
        row += [f'{times:.2f} ({low:.2f} to {high:.2f})']
    row += [f'{abs(losses["packed"] / losses["masked"] - 1):.1e}']
    print(*row, flush=True)
    return [row]


def write_mp_mae(rows, args):
    """Write MP-MAE's section of the page, in place of an older one."""
    text = f"""{SECTION}
Written by `benchmarks/fcmae_executions.py --mp-mae` on {args.machine}.
MMEarth's setting: batch {args.batch} of 112 x 112 pixels and 12 bands, cells of 16 pixels, mask ratio {MASK_RATIO}, 12
targets of pixels and images; float32, forward, backward and AdamW step. Seconds are medians of {args.steps} steps in
turns; ratios are those of steps one after the other, median and range. CPU seconds hardly depend on other work.

{table(MP_MAE_HEADER, rows)}
"""
    before = Path(args.out).read_text().partition(SECTION)[0] if Path(args.out).exists() else ''
    Path(args.out).write_text((before.rstrip('\n') + '\n\n' if before else '') + text)


def run_worker(size, execution, args):
    """Run :func:`measure` in a new process."""
    command = [sys.executable, __file__, '--batch', str(args.batch), '--steps', str(args.steps)]
    run = subprocess.run([*command, '--worker', size, execution], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def compare(size, args):
    """Measure every execution of one size in turns, and return table rows; an unexpected loss stops the run."""
    runs = {execution: [] for execution in (*EXECUTIONS, CONTROL)}
    for _ in range(args.rounds):
        for execution in runs:
            runs[execution].append(run_worker(size, execution, args))
    reference, rows = runs['masked'][0]['loss'], []
    for execution, found in runs.items():
        difference = abs(found[0]['loss'] / reference - 1)
        if (difference > 1e-5) != (execution == CONTROL):
            raise SystemExit(f'{size}, {execution}: unexpected loss {found[0]["loss"]}, masked has {reference}')
        seconds = [second for run in found for second in run['seconds']]
        rows.append(
            [
                size,
                execution,
                f'{found[0]["loss"]:.7f}',
                f'{difference:.1e}',
                f'{found[0]["features"]:.1e}',
                f'{statistics.median(seconds):.3f}',
                f'{min(seconds):.3f} to {max(seconds):.3f}',
                f'{max(run["peak"] for run in found):.0f}',
                f'{max(run["peak"] - run["idle"] for run in found):.0f}',
            ]
        )
        print(*rows[-1], flush=True)
    return rows


def write_table(rows, args):
    """Write the table with a description of the machine and the settings."""
    text = f"""# FCMAE: three executions, one function

Written by `benchmarks/fcmae_executions.py` on {args.machine}.
Batch {args.batch} of {SIDE} x {SIDE} pixels, mask ratio {MASK_RATIO}, float32, forward, backward and AdamW step.
Seconds are the median and the range of {args.rounds} x {args.steps} steps after {WARM_UP} warm-up steps, in turns
(other work on the same cores widens the ranges).
Memory is the peak resident size of the process, and its increase over the size before the first step (libraries, model
and images); the optimizer's state is included.
Differences are relative to `masked`, before the first update; features are the encoder's at visible cells. `leaky`,
whose convolutions read across the mask, is the control: a comparison that does not detect it would prove nothing.

{table(HEADER, rows)}
"""
    kept = Path(args.out).read_text().partition(SECTION)[1:] if Path(args.out).exists() else ()
    Path(args.out).write_text(text + ('\n' + ''.join(kept) if any(kept) else ''))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['atto', 'tiny', 'base'])
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--out', default='benchmarks/fcmae.md')
    parser.add_argument('--mp-mae', action='store_true', help='MP-MAE at the setting of MMEarth, packed and masked')
    parser.add_argument('--worker', nargs=2, metavar=('SIZE', 'EXECUTION'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(*args.worker, args.batch, args.steps)))
        return
    rows, args.machine = [], machine(CPU, PACKAGES)
    for size in args.sizes:
        rows += (compare_mp_mae if args.mp_mae else compare)(size, args)
        (write_mp_mae if args.mp_mae else write_table)(rows, args)


if __name__ == '__main__':
    main()
