"""``tools/quickstart.py``: the full workflow on the embedded data set, from pretraining to a report.

Pretrains, converts, fine-tunes, compares with random weights where labels are few, and evaluates. Each phase runs the
command that a user would type. Its output goes to a log file, and one line shows its progress.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..analysis.html import RECONSTRUCTION_COLUMNS, Report, read_curve, read_metric, read_scalars
from ..datasets import make_embedded
from ..utils.errors import MissingFileError, RunError
from .arguments import add_traceback

TASKS = ('mask-rcnn', 'upernet')
METRICS = (
    ('box AP', 'mask-rcnn', 'coco/bbox_mAP', 100),
    ('mask AP', 'mask-rcnn', 'coco/segm_mAP', 100),
    ('mIoU', 'upernet', 'mIoU', 1),
)
FRACTION, SEEDS, ITERATIONS = 0.1, 2, 120  # of the comparisons
KINDS = dict(frozen=('heads on frozen features', ['--frozen']), tuned=('all layers', []))


class Result(NamedTuple):
    """Metric of a model that was trained from the pretrained weights on all labels, in percent."""

    metric: str
    pretrained: float


def run(command: list[str], work_dir: Path, title: str) -> None:
    """Run a command with its output in ``work_dir/console.log``, and show its progress in one line.

    Raises:
        RuntimeError: If the command fails, after printing the end of its log.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / 'console.log'
    print(f'\n{title}\n  {" ".join(command)}', flush=True)
    started = time.monotonic()
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(1)
                _show_progress(work_dir, time.monotonic() - started)
        except BaseException:
            process.terminate()
            raise
    print(f'\r  done in {time.monotonic() - started:.0f} s{" " * 50}', flush=True)
    if process.returncode:
        print('\n'.join(log.read_text().splitlines()[-15:]), file=sys.stderr)
        raise RunError(f'{title} failed: see the lines above, the end of {log}')


def _show_progress(work_dir: Path, seconds: float) -> None:
    losses = [entry for entry in read_scalars(work_dir) if 'loss' in entry]
    if losses:
        state = f'iteration {losses[-1].get("iter", losses[-1]["step"])}, loss {losses[-1]["loss"]:.3f}'
    else:
        lines = (work_dir / 'console.log').read_text(errors='replace').splitlines()
        state = lines[-1].partition(': output')[0] if lines else ''
    end = '' if sys.stdout.isatty() else '\n'
    if end and int(seconds) % 15:
        return
    print(f'\r  {seconds:4.0f} s  {state:<40}', end=end, flush=True)


def train(config: str, work_dir: Path, title: str, options: list[str]) -> None:
    """Train one quickstart config."""
    shutil.rmtree(work_dir, ignore_errors=True)
    run(
        ['tools/train.py', f'configs/quickstart/{config}.py', '--work-dir', str(work_dir), '--cfg-options', *options],
        work_dir,
        title,
    )


def last_checkpoint(work_dir: Path) -> str:
    """Return the path of a run's newest checkpoint."""
    return (work_dir / 'last_checkpoint').read_text().strip()


def main(seed: int = 0, root: str | None = None) -> list[Result]:
    """Run all phases in ``root``, by default ``work_dirs/quickstart``, and return the results."""
    started, root = time.monotonic(), Path(root or 'work_dirs/quickstart')
    data = Path('work_dirs/quickstart/data')
    print(f'Rendering the embedded data set in {data} ...', flush=True)
    data.parent.mkdir(parents=True, exist_ok=True)
    make_embedded(str(data))
    seeded = [f'randomness.seed={seed}']
    train('fcmae', root / 'fcmae', '1/6 FCMAE pretraining on 1000 unlabelled images', seeded)
    weights = root / 'backbone.pth'
    run(
        ['tools/convert_checkpoint.py', last_checkpoint(root / 'fcmae'), str(weights), '--force'],
        root / 'convert',
        '2/6 Conversion to backbone weights',
    )
    init = f'model.backbone.init_cfg.checkpoint={weights}'
    for number, task in enumerate(TASKS, 3):
        train(task, root / f'{task}_pretrained', f'{number}/6 {task} from these weights, all labels', [init, *seeded])
    verdicts = {kind: compare(root, weights, kind) for kind in KINDS}
    results = [
        Result(name, round(factor * read_metric(root / f'{task}_pretrained', key), 1))
        for name, task, key, factor in METRICS
    ]
    draw_predictions(root)
    minutes = (time.monotonic() - started) / 60
    write_report(root, results, verdicts, seed, minutes)
    print(f'\n{"all labels":12}pretrained')
    for result in results:
        print(f'{result.metric:12}{result.pretrained:10.1f}')
    for kind, verdict in verdicts.items():
        print(f'\n{KINDS[kind][0]}, {FRACTION:.0%} of the labels: {verdict}')
    print(f'\n{minutes:.1f} minutes. Report: {root / "report.html"}')
    (root / 'results.json').write_text(json.dumps([result._asdict() for result in results]))
    return results


def compare(root: Path, weights: Path, kind: str) -> str:
    """Train UperNet on a tenth of the labels from random and from pretrained weights, and return what follows."""
    out = root / f'starts_{kind}'
    shutil.rmtree(out, ignore_errors=True)
    command = ['tools/compare_starts.py', 'configs/quickstart/upernet.py', '--start', 'scratch', '--start']
    command += [f'pretrained={weights}', '--fractions', str(FRACTION), '--seeds', str(SEEDS), '--work-dir', str(out)]
    options = [f'train_cfg.max_iters={ITERATIONS}', f'train_cfg.val_interval={ITERATIONS}']
    title = f'5/6 Does it help? upernet, {KINDS[kind][0]}, on {FRACTION:.0%} of the labels, {SEEDS} seeds'
    run([*command, *KINDS[kind][1], '--', '--cfg-options', *options], out, title)
    return (out / 'comparison.md').read_text().strip()


def draw_predictions(root: Path) -> None:
    """Test the models fine-tuned from pretrained weights, and draw their predictions next to the ground truth."""
    for task in TASKS:
        work_dir, shown = root / f'{task}_pretrained', root / f'{task}_shown'
        shutil.rmtree(shown, ignore_errors=True)
        run(
            [
                'tools/test.py',
                f'configs/quickstart/{task}.py',
                last_checkpoint(work_dir),
                '--work-dir',
                str(root / f'{task}_test'),
                '--show-dir',
                str(shown),
                '--cfg-options',
                'model.backbone.init_cfg=None',
            ],
            root / f'{task}_test',
            f'6/6 Evaluation: {task}',
        )


def write_report(root: Path, results: list[Result], verdicts: dict[str, str], seed: int, minutes: float) -> None:
    """Write ``report.html``."""
    report = Report('mmconvnextv2 quickstart')
    report.text(
        f'FCMAE pretraining of ConvNeXt V2-Atto on procedural images, then Mask R-CNN and UperNet from these weights '
        f'on all labels, and UperNet from them and from scratch on {FRACTION:.0%} of the labels. Seed {seed}, '
        f'{minutes:.1f} minutes.'
    )
    report.heading('Does pretraining help?')
    for kind, verdict in verdicts.items():
        title = f'UperNet, {KINDS[kind][0]}, {FRACTION:.0%} of the labels'
        report.text(f'{title}: ' + ' '.join(verdict.rpartition('|\n')[2].split()))
        report.image(root / f'starts_{kind}' / 'comparison.png', title)
    report.heading('All labels')
    report.table(['metric (%)', 'pretrained'], [list(result) for result in results])
    report.heading('FCMAE')
    report.curves({'FCMAE': read_curve(root / 'fcmae')}, 'Mean squared error on masked cells')
    images = sorted((root / 'fcmae').rglob('reconstruction_*.png'), key=lambda path: path.stat().st_mtime)
    report.thumbnails(images[-1:], RECONSTRUCTION_COLUMNS)
    for task in TASKS:
        report.heading(task)
        report.curves({'pretrained': read_curve(root / f'{task}_pretrained')}, f'Training loss of {task}')
        report.thumbnails(sorted((root / f'{task}_shown').rglob('*.png'))[:6], 'ground truth | prediction')
    report.write(root / 'report.html')


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/quickstart.py``."""
    parser = ArgumentParser(
        description='Pretrain, convert, fine-tune, compare and evaluate on the embedded data set, in twelve '
        'minutes on two cores.',
        epilog='Example: python tools/quickstart.py --seed 0',
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of all runs; default 0')
    parser.add_argument('--work-dir', help='output folder for everything except the data; default work_dirs/quickstart')
    add_traceback(parser)
    return parser.parse_args(argv)


def quickstart(args: Namespace) -> None:
    """Entry point of ``tools/quickstart.py``.

    Raises:
        ValueError: If the current folder is not the repository's root.
    """
    if not os.path.isdir('configs/quickstart'):
        raise MissingFileError(
            'configs/quickstart does not exist here: run the quickstart in the root of the repository'
        )
    main(args.seed, args.work_dir)
