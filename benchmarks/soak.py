"""Kill an FCMAE run at random moments, resume it each time, and compare the result with an undisturbed run.

    python benchmarks/soak.py --minutes 60 --folder work_dirs/soak

Both runs train in parallel on the embedded images. The disturbed run gets a signal (SIGKILL, sometimes SIGTERM) after a
random time between ``--every`` / 2 and ``--every`` * 3 / 2 seconds, and is resumed; after ``--minutes`` it finishes
undisturbed. The exit status is 1 unless weights and moments are bitwise equal, every checkpoint found was complete, and
the resident memory of the undisturbed run's second half stayed below 1.1 times that of its first.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

CONFIG = 'configs/quickstart/fcmae.py'


def command(args, work_dir, epochs, *more):
    """Return the command of a run with a small model and a checkpoint every few iterations."""
    options = [
        f'train_dataloader.dataset.data_root={args.folder}/data/unlabelled',
        'train_dataloader.batch_size=16',
        'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=5',
        f'default_hooks.checkpoint.max_keep_ckpts={args.keep}',
        f'train_cfg.max_epochs={epochs}',
        'param_scheduler.0.end=1',
        'param_scheduler.1.begin=1',
        f'param_scheduler.1.end={epochs}',
        'default_hooks.logger.interval=20',
        'custom_hooks=[]',
        f'train_dataloader.num_workers={args.workers}',
        f'train_dataloader.persistent_workers={args.workers > 0}',
    ]
    return [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), *more, '--cfg-options', *options]


def start(arguments, log):
    return subprocess.Popen(arguments, stdout=open(log, 'a'), stderr=subprocess.STDOUT, start_new_session=True)


def memory(pid):
    """Return the resident MiB of a process and its children."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20
    except psutil.Error:
        return 0.0


def run_quietly(args):
    """Train undisturbed, and return the seconds it took and its memory, sampled once per second."""
    begin, samples = time.monotonic(), []
    process = start(command(args, args.folder / 'quiet', args.epochs), args.folder / 'quiet.log')
    while process.poll() is None:
        samples.append(memory(process.pid))
        time.sleep(1)
    if process.returncode:
        sys.exit(f'the undisturbed run failed: see {args.folder}/quiet.log')
    return time.monotonic() - begin, samples


def run_disturbed(args, moments):
    """Train with kills, and return the list of kills (signal, seconds, iteration of the checkpoint found)."""
    kills, work_dir, end = [], args.folder / 'killed', time.monotonic() + 60 * args.minutes
    while True:
        process = start(command(args, work_dir, args.epochs, '--resume'), args.folder / 'killed.log')
        seconds = moments.uniform(args.every / 2, args.every * 1.5)
        try:
            if process.wait(seconds if time.monotonic() < end else None):
                sys.exit(f'the disturbed run ended with status {process.returncode}: see {args.folder}/killed.log')
            return kills
        except subprocess.TimeoutExpired:
            number = moments.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            os.killpg(process.pid, number)
            process.wait(60)
        found = work_dir / 'last_checkpoint'
        iteration = load_file(found.read_text())['meta']['iter'] if found.exists() else 0
        kills.append((number.name, round(seconds, 1), iteration))
        print(f'{number.name} after {seconds:.1f} s, status {process.returncode}, at iteration {iteration}', flush=True)


def differences(one, other):
    """Return the names of weights and moments that are not bitwise equal."""
    different = [name for name, value in one['state_dict'].items() if not torch.equal(value, other['state_dict'][name])]
    for index, moments in one['optimizer']['state'].items():
        different += [
            f'{index}.{name}'
            for name, value in moments.items()
            if not torch.equal(value, other['optimizer']['state'][index][name])
        ]
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=60, help='minutes after which kills end; default 60')
    parser.add_argument(
        '--every', type=float, default=180, help='mean seconds between kills, with startup; default 180'
    )
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--images', type=int, default=320)
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--keep', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/soak'))
    args = parser.parse_args()
    if not (args.folder / 'data').exists():
        make_embedded(str(args.folder / 'data'), EmbeddedSpec(unlabelled=args.images, train=1, val=1))
    with ThreadPoolExecutor() as pool:
        quiet = pool.submit(run_quietly, args)
        kills = run_disturbed(args, random.Random(args.seed))
    seconds, samples = quiet.result()
    quiet, killed = (load_file((args.folder / run / 'last_checkpoint').read_text()) for run in ('quiet', 'killed'))
    steady = samples[len(samples) // 4 :] or samples
    first, second = (max(half) for half in (steady[: len(steady) // 2 + 1], steady[len(steady) // 2 :]))
    result = dict(
        iterations=quiet['meta']['iter'],
        same_iteration=quiet['meta']['iter'] == killed['meta']['iter'],
        kills=kills,
        different=differences(quiet, killed),
        quiet_seconds=round(seconds),
        memory_mib=dict(first_half=round(first), second_half=round(second)),
    )
    (args.folder / 'result.json').write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    sys.exit(bool(result['different'] or not result['same_iteration'] or second > 1.1 * first))


if __name__ == '__main__':
    main()
