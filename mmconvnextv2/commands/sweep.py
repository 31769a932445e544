"""``tools/sweep.py``: train a config for every point of a grid, one run after the other, and rank the runs.

The predefined grids are from arXiv 2301.00808, appendices A.3 and A.4, which does not say which values were chosen.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from ..engine.hooks.early_stopping import find_metric
from ..utils.config import read_config
from ..utils.errors import RunError, UserError
from .trainings import METRICS, Run, check_train_args, command_of, logged_by, note_plan, parse_run_options, train

KEYS = dict(
    lr='optim_wrapper.optimizer.lr',
    decay='optim_wrapper.paramwise_cfg.decay_rate',
    drop_path='model.backbone.drop_path_rate',
    seed='randomness.seed',
)
GRIDS = {
    'mask-rcnn': dict(decay=(0.9, 0.95), drop_path=(0.2, 0.3, 0.4, 0.5)),  # A.3, learning rate 1e-4
    'upernet': dict(lr=(1e-4, 2e-4, 3e-4), decay=(0.8, 0.9), drop_path=(0.1, 0.2, 0.3, 0.4)),  # A.4
}
PLAN = 'sweep.json'


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/sweep.py``; arguments after ``--`` become ``train_args``."""
    parser = ArgumentParser(
        description='Train a config for every combination of the given values, and rank the runs.',
        epilog='Example: python tools/sweep.py configs/upernet/upernet_convnextv2-b_160k_ade20k-512x512.py --lr 1e-4 '
        '2e-4 --decay 0.8 0.9 -- --amp --cfg-options train_dataloader.batch_size=4',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--grid', choices=GRIDS, help="grid of the paper; explicit values replace the grid's")
    parser.add_argument('--lr', type=float, nargs='+', help='learning rates')
    parser.add_argument('--decay', type=float, nargs='+', help='layer-wise decay rates of the learning rate')
    parser.add_argument('--drop-path', type=float, nargs='+', help='drop path rates')
    parser.add_argument('--seed', type=int, nargs='+', help='seeds; a second table has means and deviations over them')
    parser.add_argument('--work-dir', help='folder for the runs; default work_dirs/CONFIG_NAME_sweep')
    metric = f'metric to rank by; default {", ".join(METRICS.values())}, or loss in pretraining'
    return parse_run_options(parser, argv, metric, 'rank the existing runs without training')


def sweep(args: Namespace) -> None:
    """Entry point of ``tools/sweep.py``: train the unfinished runs, then print the table.

    Raises:
        ValueError: If there is nothing to sweep, or the training arguments contradict the sweep.
        RuntimeError: If runs failed, after training all others and printing the table.
    """
    runs = plan_runs(args)
    waiting = [run for run in runs if not run.is_finished()]
    if args.dry_run:
        for run in waiting:
            print(run.line())
        return
    failed = [] if args.table else [run for run in waiting if not _announced(run)]
    table = rank(runs, args)
    print(table)
    if not args.table:
        (work_dir_of(args) / 'sweep.md').write_text(table + '\n')
    if failed:
        raise RunError(
            f'{len(failed)} of {len(runs)} runs failed: see '
            f'{", ".join(str(run.folder / "console.log") for run in failed)}; run the same command to continue'
        )


def _announced(run: Run) -> bool:
    print(f'{run.folder.name}: output in {run.folder / "console.log"}', flush=True)
    return train(run)


def work_dir_of(args: Namespace) -> Path:
    return Path(args.work_dir or Path('work_dirs', f'{Path(args.config).stem}_sweep'))


def grid_of(args: Namespace) -> dict[str, Sequence[float]]:
    """Return the values to sweep: those given by the user, and those of the named grid for the rest.

    Raises:
        ValueError: If there is nothing to sweep.
    """
    given = {name: getattr(args, name) or GRIDS.get(args.grid, {}).get(name) for name in KEYS}
    grid = {name: values for name, values in given.items() if values}
    if not grid:
        raise UserError(
            'nothing to sweep: pass values with --lr, --decay, --drop-path or --seed, or --grid with one of '
            f'{", ".join(GRIDS)}'
        )
    return grid


def plan_runs(args: Namespace) -> list[Run]:
    """Return the runs, each with its own folder, and record their common settings in the work folder.

    Raises:
        ValueError: See :func:`grid_of`, and ``check_train_args`` and ``note_plan`` of ``trainings``.
    """
    grid = grid_of(args)
    read_config(args.config)
    check_train_args(args.config, args.train_args, ('--work-dir', '--resume'), (KEYS[name] for name in grid))
    note_plan(work_dir_of(args), PLAN, dict(config=str(args.config), train_args=args.train_args))
    runs = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values))
        folder = work_dir_of(args) / '_'.join(f'{name}{value:g}' for name, value in settings.items())
        options = [f'{KEYS[name]}={value!r}' for name, value in settings.items()]
        runs.append(Run(settings, folder, command_of(args, folder, options)))
    return runs


def rank(runs: Sequence[Run], args: Namespace) -> str:
    """Return a Markdown table of the runs, sorted by their last value, best first.

    Raises:
        ValueError: If no run has logged the metric.
    """
    logged = [logged_by(run) for run in runs]
    metric = metric_of(args, {name for entries in logged for entry in entries for name in entry})
    falls = 'loss' in metric
    rows = []
    for run, entries in zip(runs, logged):
        points = [(entry[metric], entry.get('iter', entry['step'])) for entry in entries if metric in entry]
        best, step = (min if falls else max)(points, key=lambda point: point[0], default=('', ''))
        rows.append(
            [
                *run.settings.values(),
                points[-1][0] if points else '',
                best,
                step,
                'finished' if run.is_finished() else 'unfinished' if entries else 'not started',
            ]
        )
    at = len(rows[0]) - 4
    rows.sort(key=lambda row: (row[at] == '', row[at] if falls or row[at] == '' else -row[at]))
    header = [*runs[0].settings, f'{metric}, last', 'best', 'at step', '']
    table = '\n'.join([_line(header), '|---' * len(header) + '|', *map(_line, rows)])
    if len({run.settings.get('seed') for run in runs}) > 1:
        table += '\n\n' + _over_seeds(list(runs[0].settings), rows, metric, falls)
    return table


def _over_seeds(names: list[str], rows: list[list], metric: str, falls: bool) -> str:
    """Return a Markdown table of the mean and the deviation over seeds of the last value, best mean first."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        values = groups.setdefault(tuple(value for name, value in zip(names, row) if name != 'seed'), [])
        values += [row[len(names)]] if row[len(names)] != '' else []
    means = [
        [*group, mean(values), stdev(values) if len(values) > 1 else '', len(values)]
        for group, values in groups.items()
        if values
    ]
    means.sort(key=lambda row: row[-3] if falls else -row[-3])
    header = [*(name for name in names if name != 'seed'), f'{metric}, last: mean', 'deviation', 'seeds']
    return '\n'.join([_line(header), '|---' * len(header) + '|', *map(_line, means)])


def metric_of(args: Namespace, known: set) -> str:
    """Return the logged name of the metric to rank by, or the given name if nothing is logged yet."""
    cfg = read_config(args.config)
    metric = args.metric or ('loss' if cfg.get('val_cfg') is None else METRICS[cfg.default_scope])
    return find_metric(metric, sorted(known)) if known else metric


def _line(cells: Sequence) -> str:
    return '| ' + ' | '.join(f'{cell:.6g}' if isinstance(cell, float) else str(cell) for cell in cells) + ' |'
