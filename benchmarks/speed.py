"""Measure seconds, bytes kept for backward and peak memory of our models and their peers; write benchmarks/speed.md.

    python benchmarks/speed.py                                 # all tables, like make benchmark
    python benchmarks/speed.py --only loader --images DIR      # update one table, keep the others

Contestants take turns of two steps in one process, of which the second is timed. A ratio compares neighbouring turns;
tables show its median, and its range in brackets. Outputs, losses and weights that should be equal are compared before
anything is timed. Each table runs in a separate process, as does each contestant for its peak memory.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine, peak_bytes, race, ratio, saved_bytes, table
from torch.utils.flop_counter import FlopCounterMode

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'timm', 'MinkowskiEngine')
MIB = 2**20


def fcmae_contest(size, args):
    """Return functions that build each execution of FCMAE, by name, ours first."""
    from contestants import fcmae

    setting = dict(batch=args.batch, side=224, mask_ratio=0.6, device=args.device, bf16=args.bf16)
    return {
        'packed': lambda: fcmae(size, 'packed', True, **setting),
        'masked, same operations': lambda: fcmae(size, 'masked', True, **setting),
        'masked, layer by layer': lambda: fcmae(size, 'masked', False, **setting),
    }


def check_equal(contest, names, tolerance):
    """Return the largest difference of the named contestants' outputs, relative to the norm; exit if it is large."""
    first, *others = [[one.double() for one in _flat(contest[name].output())] for name in names]
    worst = max(((own - other).norm() / own.norm()).item() for outputs in others for own, other in zip(first, outputs))
    if not worst < tolerance:
        raise SystemExit(f'{names} differ by {worst:.1e}, more than {tolerance}: nothing was timed')
    return worst


def _flat(output):
    return [one.detach() for one in ([output] if isinstance(output, torch.Tensor) else output)]


def contest_table(contest, kind, args, pairs, own_peak=None):
    """Time the contestants in turns, and return their table.

    Args:
        contest (dict): Contestants by name.
        kind (str): Method to time: ``forward``, ``forward_backward`` or ``step``.
        args (Namespace): Arguments with ``rounds`` and ``device``.
        pairs (dict): For each name, the contestant to which its ratios refer.
        own_peak (dict, optional): Peak bytes by name. Defaults to None, without a column for the peak.
    """
    seconds = race({name: getattr(one, kind) for name, one in contest.items()}, args.rounds, args.device)
    kept = {name: saved_bytes(one.loss, one.model) for name, one in contest.items()} if kind != 'forward' else {}
    header, rows = ['', 's', 'times longer than ours'], []
    header += ['kept for backward, MiB', 'ours / theirs'] * bool(kept) + ['peak, MiB'] * bool(own_peak)
    for name, times in seconds.items():
        own = pairs.get(name, name)
        rows.append([name, f'{statistics.median(times):.3f}', '' if own == name else spread(times, seconds[own])])
        if kept:
            rows[-1] += [f'{kept[name] / MIB:.0f}', '' if own == name else f'{kept[own] / kept[name]:.3f}']
        if own_peak:
            rows[-1].append(f'{own_peak[name] / MIB:.0f}')
    return table(header, rows) + '\n'


def spread(others, ours):
    return '{:.2f} ({:.2f} to {:.2f})'.format(*ratio(others, ours))


def peaks(size, args):
    """Return the peak bytes of each execution of FCMAE, each measured in a separate process."""
    found = {}
    for name in fcmae_contest(size, args):
        command = [sys.executable, __file__, *args.given, '--peak', size, name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = int(run.stdout.splitlines()[-1])
    return found


def write_fcmae(args):
    """A whole FCMAE step, packed against masked."""
    text = [
        'Forward, backward and AdamW step; images of 224 pixels, mask ratio 0.6. Peak: memory of three '
        'steps beyond model and images.\n'
    ]
    kinds, peak = [*itertools.product(args.sizes, args.batches)], {}
    for size, batch in kinds:  # before this process grows: Linux counts its memory as that of processes it starts
        args.given[1] = str(batch)
        peak[size, batch] = peaks(size, args)
    for size, batch in kinds:
        args.batch = batch
        contest = {name: build() for name, build in fcmae_contest(size, args).items()}
        difference = check_equal(contest, list(contest), 5e-2 if args.bf16 else 1e-5)
        text.append(f'{size}, batch {batch}; losses and features differ by {difference:.0e} at most:\n')
        pairs = dict.fromkeys(contest, 'packed')
        text.append(contest_table(contest, 'step', args, pairs, peak[size, batch]))
        del contest
    return '\n'.join(text)


def write_parts(args):
    """Time of these steps by part."""
    from parts import PARTS, part_of, race_by

    text = [
        "Seconds by torch's profiler, which adds to small operations. Masked visits all 49 cells, packed only the 19 "
        'visible ones, so masked visits 2.58 times as many sites.\n'
    ]
    for size in args.sizes:
        contest = {name: build() for name, build in fcmae_contest(size, args).items() if 'layer' not in name}
        found = race_by(
            lambda event: part_of(event, [49, 512]), {name: one.step for name, one in contest.items()}, args.rounds
        )
        text += [f'{size}:\n', parts_table(found, PARTS) + '\n']
    return '\n'.join(text)


def parts_table(found, parts):
    """Return the table of seconds of each part of two contestants, ours first, with sums and quotients."""
    ours, theirs = (dict(one, sum=sum(one.values())) for one in found.values())
    rows = [
        [part, f'{ours[part]:.3f}', f'{theirs[part]:.3f}', f'{theirs[part] / ours[part]:.2f}']
        for part in (*parts, 'sum')
    ]
    return table(['', *found, 'times'], rows)


def write_spark(args):
    """A pretraining step of ConvNeXt V2-T, FCMAE against mmpretrain's SparK."""
    from contestants import fcmae, spark

    contest = {
        'packed': fcmae('tiny', 'packed', True, args.batch, 224, 0.6, args.device, args.bf16),
        'SparK (mmpretrain)': spark(args.batch, 224, args.device, args.bf16),
    }
    return (
        f'The same images, batch {args.batch} of 224 pixels, mask ratio 0.6, AdamW for both. SparK is another '
        'method: dense, with a UNet decoder over four stages.\n\n'
        + contest_table(contest, 'step', args, dict.fromkeys(contest, 'packed'))
    )


def write_minkowski(args):
    """A whole FCMAE step, Atto, batch 4, against MinkowskiEngine."""
    from contestants import fcmae

    contest = {
        execution: fcmae('atto', execution, True, 4, 224, 0.6, args.device) for execution in ('packed', 'minkowski')
    }
    difference = check_equal(contest, list(contest), 1e-5)
    return (
        f"`execution='minkowski'` is the same model with MinkowskiEngine's kernels; losses and features "
        f'differ by {difference:.0e} at most. float32, 224 pixels, mask ratio 0.6.\n\n'
        + contest_table(contest, 'step', args, dict.fromkeys(contest, 'packed'))
    )


def write_backbone(args):
    """The dense backbone against mmpretrain's and timm's, with the same weights."""
    from contestants import backbones

    text = [
        f'ConvNeXt V2-T, batch {args.dense_batch} of {args.dense_side} pixels, four maps. Ours is measured with '
        'norms on the outputs, like mmpretrain, and without, like timm.\n'
    ]
    pairs = {'mmpretrain': 'ours', 'timm': 'ours, no output norms'}
    for bf16 in (False, True):
        contest = backbones('tiny', args.dense_batch, args.dense_side, args.device, bf16)
        worst = max(check_equal(contest, pair, 0.05 if bf16 else 1e-4) for pair in pairs.items())
        text.append(f'{"bfloat16 autocast" if bf16 else "float32"}; maps differ by {worst:.0e}. Forward:\n')
        text.append(contest_table(contest, 'forward', args, pairs))
        text.append('Forward and backward:\n')
        text.append(contest_table(contest, 'forward_backward', args, pairs))
    return '\n'.join(text)


def write_bound(args):
    """What limits the dense backbone on the CPU."""
    from contestants import backbones
    from parts import KINDS, kind_of, race_by

    contest = backbones('tiny', args.dense_batch, args.dense_side, args.device)
    steps = {name: contest[name].forward_backward for name in ('ours', 'mmpretrain')}
    with FlopCounterMode(display=False) as counter:
        steps['ours']()
    work = (
        sum(
            count
            for operation, count in counter.get_flop_counts()['Global'].items()
            if 'convolution' not in str(operation)
        )
        / 1e9
    )
    return (
        f"float32, batch {args.dense_batch} of {args.dense_side} pixels, forward and backward, seconds by torch's "
        f'profiler. Both compute the same {work:.0f} GFLOP of matrix products,\nwhich neither keeping less for '
        'backward nor fewer passes over memory can shorten.\n\n'
        + parts_table(race_by(kind_of, steps, args.rounds), KINDS)
        + '\n'
    )


def write_allocator(args):
    """The same with an allocator that keeps freed memory."""
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(2**40), 'MALLOC_TRIM_THRESHOLD_': str(2**40)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *args.given, '--only', 'backbone', '--out', f'{folder}/backbone.md']
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        body = read_parts(f'{folder}/backbone.md')['backbone'].split('\n\n', 2)[2]
    return (
        'By default glibc returns blocks above 32 MiB to the system, which zeroes them on the next allocation. This\n'
        'costs the peers more, since their tensors are larger. Here `MALLOC_MMAP_THRESHOLD_` and\n'
        '`MALLOC_TRIM_THRESHOLD_` are set so high that memory is never returned.\n\n' + body
    )


def write_downstream(args):
    """Training steps of whole recipes, with our backbone and mmpretrain's."""
    from contestants import downstream

    text = [
        f'{args.dense_batch} images of {args.dense_side} pixels, random labels (8 instances, or 150 classes), '
        'Tiny, AdamW; heads as in the recipes. Both start from the same weights, and their first losses are compared.\n'
    ]
    for title, config in (
        ('Mask R-CNN', 'configs/mask_rcnn/mask-rcnn_convnextv2-t_fpn_lsj-3x_coco.py'),
        ('UperNet', 'configs/upernet/upernet_convnextv2-t_160k_ade20k-512x512.py'),
    ):
        contest = {
            one: downstream(config, args.dense_batch, args.dense_side, args.device, one)
            for one in ('ours', 'mmpretrain')
        }
        difference = check_equal(contest, list(contest), 1e-3)
        text.append(f'{title}; losses differ by {difference:.0e}:\n')
        text.append(contest_table(contest, 'step', args, dict(mmpretrain='ours')))
    return '\n'.join(text)


def write_scaling(args):
    """An FCMAE step by batch, resolution, mask ratio and size, packed against masked."""
    from contestants import fcmae

    base = dict(size='atto', batch=8, side=224, mask_ratio=0.6)
    changes = [
        {},
        *(dict(batch=one) for one in (1, 2, 32)),
        *(dict(side=one) for one in (160, 320, 448)),
        *(dict(mask_ratio=one) for one in (0.3, 0.75, 0.9)),
        *(dict(size=one) for one in ('pico', 'tiny')),
    ]
    rows = []
    for change in changes:
        setting = {**base, **change}
        contest = {
            one: fcmae(execution=one, fused=True, device=args.device, bf16=args.bf16, **setting)
            for one in ('packed', 'masked')
        }
        check_equal(contest, list(contest), 5e-2 if args.bf16 else 1e-5)
        seconds = race({name: one.step for name, one in contest.items()}, args.rounds, args.device)
        kept = {name: saved_bytes(one.loss, one.model) for name, one in contest.items()}
        rows.append(
            [
                *setting.values(),
                f'{1000 * statistics.median(seconds["packed"]) / setting["batch"]:.1f}',
                spread(seconds['masked'], seconds['packed']),
                f'{kept["packed"] / MIB / setting["batch"]:.1f}',
                f'{kept["packed"] / kept["masked"]:.3f}',
            ]
        )
    header = [
        'size',
        'batch',
        'pixels',
        'mask ratio',
        'ms per image',
        'masked takes times longer',
        'kept for backward, MiB per image',
        'ours / masked',
    ]
    return (
        'Packed against masked with the same operations; losses and features are equal.\n\n'
        + table(header, rows)
        + '\n'
    )


def write_loader(args):
    """Images per second of the ways to read them for FCMAE and of torchvision, one core."""
    from loader import pipelines

    from mmconvnextv2.datasets import jpeg, resize

    text = [
        'Read, crop to 224 pixels (bicubic), flip; one process, one thread, per second of its processor time. JPEG: '
        f'{jpeg.describe()}; crops resized by {resize.describe()}. The configured way gives the pixels and masks of '
        "mmcv's and mmpretrain's transforms, which is checked before. Packed images have a short side of 256.\n"
    ]
    for folder in args.images or [None]:
        count, steps = pipelines(folder)
        seconds = race(steps, args.rounds, torch.device('cpu'), time.process_time)
        rows = [
            [name, f'{count / statistics.median(times):.0f}', spread(seconds['torchvision'], times)]
            for name, times in seconds.items()
        ]
        where = f'a folder named {Path(folder).name}' if folder else 'synthetic content, 256 pixels high'
        header = ['', 'images per second', 'torchvision takes times longer']
        text += [f'{count} images of {where}:\n', table(header, rows) + '\n']
    return '\n'.join(text)


SECTIONS = {
    'fcmae': write_fcmae,
    'parts': write_parts,
    'spark': write_spark,
    'minkowski': write_minkowski,
    'backbone': write_backbone,
    'bound': write_bound,
    'allocator': write_allocator,
    'downstream': write_downstream,
    'scaling': write_scaling,
    'loader': write_loader,
}
CPU_ONLY = 'parts', 'bound', 'allocator'


def write_section(name, args):
    """Measure one table in this process, and replace it in the file."""
    hardware = machine(args.device, PACKAGES)
    body = SECTIONS[name](args)
    title = SECTIONS[name].__doc__.splitlines()[0].rstrip('.')
    part = f'## {title}\n\n<!-- {name} -->\n{hardware}; {args.rounds} rounds.\n\n{body}'
    parts = read_parts(args.out)
    parts[name] = part
    order = [one for one in SECTIONS if one in parts]
    Path(args.out).write_text(HEAD + '\n' + '\n'.join(parts[one] for one in order))
    print(part)


HEAD = """# Speed and memory compared with the peers

Written by `make benchmark` (`benchmarks/speed.py`, which describes the method). Contestants take turns of two steps, of
which the second is timed. Ratios are medians over the rounds, with their range in brackets; other work on the same
machine widens the ranges.
"""


def read_parts(path):
    """Return the tables of an earlier run, by name."""
    text = Path(path).read_text() if Path(path).exists() else ''
    parts = {}
    for part in text.split('\n## ')[1:]:
        parts[part.split('<!-- ')[1].split(' -->')[0]] = '## ' + part.rstrip('\n') + '\n'
    return parts


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=SECTIONS, help='tables to measure; default all for the device')
    parser.add_argument('--sizes', nargs='+', default=['tiny', 'base'], help='sizes in the first two tables')
    parser.add_argument(
        '--batch',
        type=int,
        nargs='+',
        dest='batches',
        help='batch sizes of pretraining steps, of which tables but the first take one; default 8, on a GPU 64 and 256',
    )
    parser.add_argument('--dense-batch', type=int, default=2)
    parser.add_argument('--dense-side', type=int, default=512, help='side of the images in pixels')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument(
        '--bf16', action='store_true', help='autocast to bfloat16, except in tables with a fixed precision'
    )
    parser.add_argument(
        '--device', type=torch.device, default=torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    )
    parser.add_argument('--images', nargs='+', help='folders of JPEGs for the loader; default synthetic ones')
    parser.add_argument('--out', default='benchmarks/speed.md')
    parser.add_argument('--peak', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.batches = args.batches or ([8] if args.device.type == 'cpu' else [64, 256])
    args.batch = args.batches[0]
    args.only = args.only or [one for one in SECTIONS if args.device.type == 'cpu' or one not in CPU_ONLY]
    args.given = [
        '--batch',
        str(args.batch),
        '--dense-batch',
        str(args.dense_batch),
        '--dense-side',
        str(args.dense_side),
        '--rounds',
        str(args.rounds),
        '--device',
        str(args.device),
    ]
    args.given += ['--bf16'] * args.bf16
    return args


def main():
    args = parse_args()
    # TF32 would make products of float32 that should be equal differ, and ours and the peers' use it for other products
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if args.peak:
        size, name = args.peak
        print(peak_bytes(fcmae_contest(size, args)[name]().step, args.device))
    elif len(args.only) == 1:
        write_section(args.only[0], args)
    else:
        rest = [one for one in sys.argv[1:] if one not in ('--only', *SECTIONS)]
        commands = {name: [sys.executable, __file__, *rest, '--only', name] for name in args.only}
        failed = [name for name, command in commands.items() if subprocess.run(command).returncode]
        if failed:  # of which a peer is absent, for example; the others are written
            sys.exit(f'error: no tables of {", ".join(failed)}: see above')


if __name__ == '__main__':
    main()
