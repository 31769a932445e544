"""``tools/report.py``: one HTML page for any work folder.

Reads the log, scalars, config, checkpoint and images that mmengine writes, so nothing has to be enabled before the run.
"""

import itertools
import json
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..analysis.html import RECONSTRUCTION_COLUMNS, Report, parse_scalars
from ..checkpoint.load import load_file
from ..datasets.image_files import list_images
from ..engine.hooks.mistakes import MISTAKES
from ..utils.errors import MissingFileError, UserError
from .arguments import add_traceback
from .features import read_distances

Curves = dict[str, tuple[list[float], list[float]]]
DECISIVE = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU', 'accuracy/top1', 'accuracy')  # the first that is logged
CLASS_TITLES = {'bbox': ', boxes', 'segm': ', masks', '': ''}
NOT_METRICS = re.compile(
    r'loss|^(base_lr|lr|data_time|time|memory|grad_norm|step|iter|epoch)$|acc_seg$|^acc$|_precision$'
)
BORDER = re.compile(r'^[+|].*[+|]$')
EVALUATED = re.compile(r'Evaluating (bbox|segm)\.\.\.')


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/report.py``."""
    parser = ArgumentParser(
        description='Write one HTML page for a work folder: curves, metrics, learning rates by layer, images, '
        'environment and config. It opens from disk and needs no network.',
        epilog='Example: python tools/report.py work_dirs/upernet --images work_dirs/upernet_shown',
    )
    parser.add_argument('work_dir', help='work folder of tools/train.py or tools/test.py')
    parser.add_argument('--out', help='output file; default WORK_DIR/report.html')
    parser.add_argument(
        '--images',
        '--pictures',  # name in 0.1
        '--images',
        nargs='+',
        default=[],
        help='additional images or folders of images, such as those of tools/test.py --show-dir',
    )
    parser.add_argument('--distance', metavar='CSV', help='feature distances from tools/analyze_features.py distance')
    parser.add_argument(
        '--num-images', '--num-pictures', type=int, default=12, help='maximum number of images per section; default 12'
    )
    add_traceback(parser)
    return parser.parse_args(argv)


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path does not link outside a folder, since the target's content would get into the page.

    Raises:
        ValueError: If it does.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f'{path} links outside {folder}: replace the link with a copy of the file')


def find_runs(work_dir: Path) -> list[Path]:
    """Return the folders of the runs in a work folder, oldest first.

    Raises:
        FileNotFoundError: If the work folder does not exist.
        ValueError: If it contains no run, or a link that leads outside.
    """
    if not work_dir.is_dir():
        raise MissingFileError(f'{work_dir} does not exist: pass the --work-dir of a training or test')
    runs = sorted(path for path in work_dir.iterdir() if (path / 'vis_data').is_dir())
    for path in [*runs, *(file for run in runs for file in [*run.glob('*'), *(run / 'vis_data').rglob('*')])]:
        check_inside(path, work_dir)
    if not runs:
        raise UserError(f'{work_dir} contains no run (no */vis_data): pass the --work-dir of a training or test')
    return runs


def read_entries(runs: Sequence[Path]) -> list[dict]:
    """Return the log entries of all runs, in order; entries of a resumed run replace those of the steps it repeats."""
    entries = []
    for run in runs:
        path = run / 'vis_data' / 'scalars.json'
        new = parse_scalars(path.read_text(errors='replace')) if path.is_file() else []
        trained = [entry['iter'] for entry in new if 'iter' in entry]
        if trained:
            entries = [entry for entry in entries if entry.get('iter', entry.get('step', 0)) < min(trained)]
        entries += new
    last = 0
    for (
        entry
    ) in entries:  # MMEngine counts evaluations by epoch by default, and runs counted in iterations have no epochs
        last = entry.get('iter', last)
        if 'iter' not in entry and not entry.get('step'):
            entry['step'] = last
    return entries


def curves_of(entries: Sequence[dict], names: Sequence[str]) -> Curves:
    """Return (steps, values) of the named scalars that were logged at least twice."""
    curves = {}
    for name in names:
        points = [
            (entry.get('iter', entry.get('step', 0)), entry[name])
            for entry in entries
            if isinstance(entry.get(name), (int, float))
        ]
        if len(points) > 1:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    return curves


def metric_names(entries: Sequence[dict]) -> list[str]:
    """Return the names of the metrics that evaluators logged."""
    names = dict.fromkeys(
        name
        for entry in entries
        for name, value in entry.items()
        if isinstance(value, (int, float)) and not NOT_METRICS.search(name)
    )
    return list(names)


def class_tables(log: str) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the header and the rows of the last table per class in a log, such as IoU, by what was evaluated.

    Detectors log a table for ``bbox`` and one for ``segm``; elsewhere the key is empty.
    """
    kind, block, tables = '', [], {}
    for line in [*log.splitlines(), '']:
        if BORDER.match(line):
            block.append(line)
            continue
        if block:
            rows = [[cell.strip() for cell in row.strip('|').split('|')] for row in block if row.startswith('|')]
            tables[kind], block = (rows[0], rows[1:]), []
        evaluated = EVALUATED.search(line)
        kind = evaluated[1] if evaluated else kind
    return tables


def environment_of(log: str) -> str:
    """Return mmengine's description of the system from the start of a log; empty if it is missing."""
    found = re.search(r'System environment:\n(.*?)\n-{20,}', log, re.DOTALL)
    return found[1] if found else ''


def newest_checkpoint(work_dir: Path) -> Path | None:
    """Return the file in the work folder with the name in ``last_checkpoint``, even if the folder was moved.

    Returns:
        Path | None: Path of the file; None if it does not exist.
    """
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return None
    path = work_dir / Path(pointer.read_text(errors='replace').strip()).name
    check_inside(pointer, work_dir)
    check_inside(path, work_dir)
    return path if path.is_file() else None


def parameter_groups(checkpoint: dict) -> list[dict]:
    """Return learning rate, scale, weight decay, tensors and parameters of each optimizer group in a checkpoint."""
    optimizer = checkpoint.get('optimizer') or {}
    state = optimizer.get('state', {})
    described = []
    for group in optimizer.get('param_groups', []):
        moments = [state.get(index, {}).get('exp_avg') for index in group['params']]
        described.append(
            dict(
                lr=group.get('lr', 0.0),
                lr_scale=group.get('lr_scale', 1.0),
                weight_decay=group.get('weight_decay', 0.0),
                tensors=len(group['params']),
                parameters=sum(moment.numel() for moment in moments if moment is not None),
            )
        )
    return described


def add_learning_rates(report: Report, entries: Sequence[dict], work_dir: Path) -> None:
    """Add the learning rate at every depth over time, and the table of parameter groups."""
    base = curves_of(entries, ['base_lr']).get('base_lr')
    path = newest_checkpoint(work_dir)
    groups = parameter_groups(load_file(str(path))) if path else []
    if not base and not groups:
        return
    report.heading('Learning rates')
    if base:
        scales = sorted({group['lr_scale'] for group in groups}, reverse=True) or [1.0]
        caption = 'One rate for all layers' if len(scales) == 1 else 'By depth: the head has the largest rate'
        report.curves(
            {f'times {scale:.3g}': (base[0], [rate * scale for rate in base[1]]) for scale in scales},
            caption,
            ylabel='learning rate',
        )
    if groups:
        report.table(
            ['rate at the checkpoint', 'scale', 'weight decay', 'tensors', 'parameters'],
            [
                [
                    f'{group["lr"]:.3g}',
                    f'{group["lr_scale"]:.3g}',
                    f'{group["weight_decay"]:g}',
                    group['tensors'],
                    f'{group["parameters"]:,}',
                ]
                for group in groups
            ],
        )


def plan_of(log: str) -> str:
    """Return the last plan in a log, without its heading; empty if there is none."""
    lines = log.rpartition(' - plan\n')[2].splitlines() if ' - plan\n' in log else []
    plan = itertools.takewhile(lambda line: line.startswith('    '), lines)
    return '\n'.join(line.strip() for line in plan)


def add_metrics(report: Report, entries: Sequence[dict], metrics: Sequence[str]) -> None:
    """Add a table of the best and the last value of each metric, and a plot of the one that decides."""
    unit = 'epoch' if any('epoch' in entry for entry in entries) else 'iteration'
    decisive = next((name for name in DECISIVE if name in metrics), metrics[0])
    rows = []
    for name in sorted(metrics, key=lambda name: name != decisive):
        points = [
            (entry.get('step', entry.get('iter', 0)), entry[name])
            for entry in entries
            if isinstance(entry.get(name), (int, float))
        ]
        step, best = max(points, key=lambda point: point[1])
        rows.append([name, _shown(points[-1][1]), _shown(best), step])
    report.heading('Metrics')
    report.table(['metric', 'last value', 'best value', f'at {unit}'], rows)
    report.curves(curves_of(entries, [decisive]), f'{decisive} over training', ylabel=decisive, xlabel=unit, best='max')


def _shown(value: float) -> str:
    return 'no such objects' if value == -1 else f'{value:.4g}'


def read_mistakes(folder: str) -> dict[str, dict]:
    """Return what ``tools/test.py --show-dir`` found wrong with each image in a folder, by the name of its file."""
    path = Path(folder) / MISTAKES
    return {Path(one['file']).stem: one for one in json.loads(path.read_text())} if path.is_file() else {}


def worst_first(given: Sequence[str]) -> list[tuple[Path, str]]:
    """Return the images in files and folders with captions, those with the largest errors first."""
    described = []
    for source in given:
        mistakes = read_mistakes(source)
        for path in map(Path, list_images([source])):
            # MMSegmentation adds the split and the step: test_NAME.jpg_0.png
            found = mistakes.get(re.sub(r'^test_(.+)\.\w+_\d+$', r'\1', path.stem))
            text = f'{path.name}: {found["text"]} (error {found["error"]:.2f})' if found else path.name
            described.append((found['error'] if found else -1, path, text))
    return [(path, text) for _, path, text in sorted(described, key=lambda one: -one[0])]


def add_images(report: Report, runs: Sequence[Path], more: Sequence[str], most: int) -> None:
    """Add reconstructions, drawn predictions, and the images given by the user."""
    found = [path for run in runs for path in sorted((run / 'vis_data').rglob('*.png'))]
    reconstructions = sorted(
        (path for path in found if path.name.startswith('reconstruction')), key=lambda path: path.stat().st_mtime
    )
    drawn = [path for path in found if path not in reconstructions]
    if reconstructions:
        report.heading('Reconstructions')
        for path in dict.fromkeys([reconstructions[0], reconstructions[-1]]):
            report.image(path, f'{path.stem}: {RECONSTRUCTION_COLUMNS}')
    latest = [(path, path.name) for path in reversed(drawn)]
    for title, described in (('Predictions and ground truth', latest), ('Images', worst_first(more))):
        if described:
            report.heading(title)
            paths, captions = zip(*described[:most])
            report.thumbnails(paths, f'{len(paths)} of {len(described)}', captions)


def report_run(args: Namespace) -> None:
    """Entry point of ``tools/report.py``: write a report.

    Raises:
        FileNotFoundError: If the work folder or an image does not exist.
        ValueError: If the work folder contains no run.
    """
    work_dir = Path(args.work_dir)
    runs = find_runs(work_dir)
    entries = read_entries(runs)
    log = '\n'.join(path.read_text(errors='replace') for run in runs for path in sorted(run.glob('*.log')))
    report = Report(work_dir.resolve().name)
    report.text(f'{len(runs)} runs, the last one {runs[-1].name}.' if len(runs) > 1 else f'Run {runs[-1].name}.')
    metrics = metric_names(entries)
    if plan_of(log):
        report.code(plan_of(log))
    if metrics:
        add_metrics(report, entries, metrics)
    for kind, (header, rows) in class_tables(log).items():
        report.heading(f'By class{CLASS_TITLES[kind]}')
        report.table(header, rows)
    losses = sorted(
        {name for entry in entries for name in entry if 'loss' in name}, key=lambda name: (name != 'loss', name)
    )
    training = [entry for entry in entries if 'loss' in entry]
    if training:
        report.heading('Losses and speed')
        if len(training) == 1:
            values = ', '.join(f'{name} {training[0][name]:.4g}' for name in losses)
            report.text(f'Logged once, at iteration {training[0].get("iter", 0)}: {values}. Curves need two entries.')
        report.curves(curves_of(training, losses), 'Training losses')
        report.curves(
            curves_of(training, ['time', 'data_time']),
            'Seconds per iteration, and the part spent waiting for data',
            ylabel='seconds',
        )
        report.curves(curves_of(training, ['grad_norm']), 'Norm of the gradient', ylabel='norm')
        add_learning_rates(report, training, work_dir)
    add_images(report, runs, args.images, args.num_images)
    if args.distance:
        report.heading('Feature diversity')
        curves = {
            label: ([one.depth for one in distances], [one.distance for one in distances])
            for label, distances in read_distances(args.distance).items()
        }
        report.curves(
            curves,
            'Mean cosine distance between channels over normalised depth; 0 if all channels are alike',
            ylabel='distance',
            xlabel='normalised depth',
        )
    if environment_of(log):
        report.heading('Environment')
        report.code(environment_of(log))
    config = runs[-1] / 'vis_data' / 'config.py'
    if config.is_file():
        report.folded('Config', config.read_text(errors='replace'))
    out = Path(args.out) if args.out else work_dir / 'report.html'
    report.write(out)
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB'.encode(errors='replace').decode())
