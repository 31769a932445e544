"""Check a GPU in at most 8 minutes: are the kernels right, what do they cost, and who is faster.

    make gpu-check                                               # in the tested environment
    python benchmarks/gpu_check.py --wheels work_dirs/gpu_wheels # on a bare machine with torch, triton, timm and numpy
    python benchmarks/gpu_check.py --device cpu --narrow         # try the script itself, without figures that count
    python benchmarks/gpu_check.py --report work_dirs/gpu_check.jsonl --out benchmarks/gpu.md

Writes a JSON line per item as soon as it is done, most important first, so a run that is cut off is still worth
something. Items run in a process of their own, which is replaced if it dies or an item takes too long, since an illegal
access leaves a GPU's context unusable. `make gpu-wheels` fetches the wheels for a bare machine with Python 3.12; what
they do not bring is skipped with its reason.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = Path('work_dirs/gpu_check.jsonl')
GRACE = 20  # seconds to start a worker, in addition to its first item's


def arguments():
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--narrow', action='store_true', help='narrow shapes and few rounds, to try the script itself')
    parser.add_argument('--seconds', type=float, default=480, help='time limit of the whole check')
    parser.add_argument('--only', nargs='+', help='beginnings of the names of items to run')
    parser.add_argument('--wheels', type=Path, help='folder of wheels to install next to the output')
    parser.add_argument('--out', type=Path, default=None, help=f'file of the results; default {OUT}, or the report')
    parser.add_argument('--report', type=Path, help='only turn these results into a table')
    parser.add_argument('--worker', nargs='*', help=argparse.SUPPRESS)
    return parser.parse_args()


def cuda_is_available():
    """Return whether torch sees a GPU; in a process of its own, since this one starts others that use it."""
    code = 'import sys, torch; sys.exit(not torch.cuda.is_available())'
    return subprocess.run([sys.executable, '-c', code], stderr=subprocess.DEVNULL).returncode == 0


def append(path, row):
    """Write a row at once, and show it."""
    with path.open('a') as file:
        file.write(json.dumps(row) + '\n')
    print(json.dumps(row)[:300], flush=True)


def install(wheels, folder):
    """Install wheels without their dependencies into a folder, and return what could not be."""
    failed = []
    for wheel in sorted(wheels.glob('*.whl')):
        command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', folder, wheel]
        if subprocess.run([*map(str, command)], capture_output=True).returncode:
            failed.append(wheel.name)
    return failed


def listed(args, environment):
    """Return the names and seconds of the items, most important first."""
    command = [sys.executable, __file__, *given(args), '--worker']
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def given(args):
    """Return the arguments that a worker needs."""
    return ['--device', args.device, *['--narrow'] * args.narrow]


def run_items(args, out):
    """Run all items in workers, and return whether each of them passed or was skipped."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    started = time.monotonic()
    if args.wheels:
        packages = out.parent / 'gpu_packages'
        failed = install(args.wheels, packages)
        append(out, dict(item='wheels', ok=not failed, failed=failed))
        environment['PYTHONPATH'] += os.pathsep + str(packages.resolve())
    items = [one for one in listed(args, environment) if not args.only or one[0].startswith(tuple(args.only))]
    good = True
    while items:
        left = args.seconds - (time.monotonic() - started)
        if left < 5:
            append(out, dict(item='rest', ok=False, skipped=f'no time left for {[name for name, _ in items]}'))
            return False
        command = [sys.executable, '-u', __file__, *given(args), '--worker', *[name for name, _ in items]]
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        done, why = follow(worker, items, out, started + args.seconds)
        good &= all(row['ok'] or 'skipped' in row for row in done)
        if why:
            name = items[len(done)][0]
            append(out, dict(item=name, ok=False, error=why))
            good, done = False, [*done, None]
        items = items[len(done) :]
    return good


def follow(worker, items, out, end):
    """Pass on a worker's rows until it ends, and return them and why it ended early, or None."""
    lines, rows, deadline = queue.Queue(), [], time.monotonic() + GRACE + items[0][1]

    def read():
        for line in worker.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while len(rows) < len(items):
        try:
            line = lines.get(timeout=max(min(deadline, end) - time.monotonic(), 0))
        except queue.Empty:
            worker.kill()
            late = time.monotonic() >= deadline
            return rows, f'took longer than {items[len(rows)][1]} s' if late else 'the check ran out of time'
        if line is None:
            return rows, f'its process ended with status {worker.wait()}'
        if line.startswith('{"item"'):
            rows.append(json.loads(line))
            append(out, rows[-1])
            deadline = time.monotonic() + (items[len(rows)][1] if len(rows) < len(items) else 0)
    return rows, None


def report(results):
    """Return results as a table in Markdown."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    machine = next((row for row in rows if row['item'] == 'machine'), {})
    lines = ['# A GPU', '', f'Written by `benchmarks/gpu_check.py`: {machine.get("device", "unknown device")}.', '']
    lines += ['| item | seconds | result |', '| --- | --- | --- |']
    for row in rows:
        figures = ', '.join(
            f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
            for key, value in row.items()
            if key not in ('item', 'ok', 'took')
        )
        state = '' if row['ok'] else 'skipped: ' if 'skipped' in row else 'FAILED: '
        lines.append(f'| {row["item"]} | {row.get("took", "")} | {state}{figures} |'.replace('\n', ' '))
    return '\n'.join(lines) + '\n'


def main():
    """Run the check, a worker of it, or write the report."""
    args = arguments()
    if args.report:
        text = report(args.report)
        print(text)
        if args.out:
            args.out.write_text(text)
    elif args.worker is not None:
        import gpu_items

        gpu_items.work(args.device, args.narrow, args.worker)
    else:
        if args.device == 'cuda' and not cuda_is_available():
            sys.exit(
                'error: torch sees no GPU. `python -m mmconvnextv2 doctor` says why; --device cpu --narrow tries this '
                'script without one'
            )
        out = args.out or OUT
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text('')
        sys.exit(0 if run_items(args, out) else 1)


if __name__ == '__main__':
    main()
