"""Compare the speed of this checkout with that of another one, turn by turn.

    git worktree add ../before v0.1.0
    python benchmarks/against.py ../before

Three processes take turns: the other checkout, this one, and this one again as a control. Each holds the same models
with the same random weights and inputs. A ratio compares neighbouring turns; the table shows its median and its range,
first for the two checkouts, then for this one against itself. A difference inside the second range is noise.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

THIS = Path(__file__).resolve().parents[1]
JOBS = {
    'FCMAE step': 'Atto, packed, 8 images of 224 pixels, AdamW',
    'training step': 'Atto, dense, 4 images of 224 pixels, sum of maps, AdamW',
    'inference': 'Atto, dense, 4 images of 224 pixels',
}


def build_jobs():
    """Return a function for each of ``JOBS``. Only names that all versions have are used."""
    import torch
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    import mmconvnextv2.pretrain  # noqa: F401, registers FCMAE
    from mmconvnextv2 import ConvNeXtV2

    torch.manual_seed(0)
    backbone = dict(type='ConvNeXtV2', arch='atto', out_indices=(3,), out_norm=False)
    neck, head = dict(type='FCMAEDecoder', channels=512), dict(type='FCMAEHead')
    fcmae, dense = MODELS.build(dict(type='FCMAE', backbone=backbone, neck=neck, head=head)), ConvNeXtV2('atto')
    for parameter in [*fcmae.parameters(), *dense.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    images = torch.randn(8, 3, 224, 224)
    cells = [torch.randperm(49)[:20].sort().values.numpy() for _ in images]
    samples = [DataSample(metainfo=dict(visible_cells=one)) for one in cells]
    optimizers = {model: torch.optim.AdamW(model.parameters(), fused=True) for model in (fcmae, dense)}

    def update(model, loss):
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    def infer():
        with torch.no_grad():
            dense.eval()(images[:4])

    return {
        'FCMAE step': lambda: update(fcmae, fcmae.loss(images, samples)['loss']),
        'training step': lambda: update(dense.train(), sum(one.square().mean() for one in dense(images[:4]))),
        'inference': infer,
    }


def serve():
    """Run the jobs named on the standard input, twice each, and print the seconds of the second run."""
    jobs = build_jobs()
    print('ready', flush=True)
    for line in sys.stdin:
        job = jobs[line.strip()]
        job()
        begin = time.perf_counter()
        job()
        print(time.perf_counter() - begin, flush=True)


def start(tree):
    """Start a process that imports the package of a checkout."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    command = [sys.executable, '-W', 'ignore', __file__, '--serve']
    return subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(tree)}, cwd=tree, **pipes)


def main():
    """Take the turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', nargs='?', help='another checkout of this repository')
    parser.add_argument('--rounds', type=int, default=20, help='turns of each process; default 20')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    processes = dict(before=start(args.before), after=start(THIS), control=start(THIS))
    for name, process in processes.items():
        if process.stdout.readline().strip() != 'ready':
            sys.exit(f'error: the process of {name} ended: does the checkout import?')
    print(f'| | before, s | now, s | now / before | now / now, the control |\n{"| --- " * 5}|')
    for job, setting in JOBS.items():
        seconds = {name: [] for name in processes}
        for _ in range(args.rounds):
            for name, process in processes.items():
                process.stdin.write(f'{job}\n')
                process.stdin.flush()
                seconds[name].append(float(process.stdout.readline()))
        medians = [f'{statistics.median(seconds[name]):.4f}' for name in ('before', 'after')]
        ratios = [spread(seconds['after'], seconds[other]) for other in ('before', 'control')]
        print(f'| {job} ({setting}) | {" | ".join([*medians, *ratios])} |', flush=True)
    for process in processes.values():
        process.stdin.close()


def spread(numerators, denominators):
    """Return the median and the range of ratios of neighbouring turns."""
    ratios = [one / other for one, other in zip(numerators, denominators)]
    return f'{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})'


if __name__ == '__main__':
    main()
