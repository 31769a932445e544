"""``tools/compare_starts.py``: does pretraining help? Train one recipe from several starts and say what follows."""

import csv
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

from ..analysis.comparison import (
    Curve,
    Score,
    conclude,
    draw_curves,
    draw_scores,
    find_differences,
    tabulate,
)
from ..analysis.html import Report
from ..engine.hooks.early_stopping import find_metric
from ..utils.atomic import replacing
from ..utils.config import load_config
from ..utils.errors import RunError, UserError
from .arguments import add_weights_dir, check_checkpoint
from .train import parse_train_args
from .trainings import METRICS, Run, check_train_args, command_of, logged_by, note_plan, parse_run_options, train

SCRATCH, PLAN = 'scratch', 'compare.json'
CHECKPOINT = 'model.backbone.init_cfg.checkpoint'
FROZEN, DECAY = 'model.backbone.frozen_stages', 'optim_wrapper.paramwise_cfg.decay_rate'
OWN_FLAGS = ('--work-dir', '--resume', '--seed', '--fraction')
EXAMPLES = """examples:
  python tools/compare_starts.py data/street/config.py --start scratch \\
      --start mine=work_dirs/unlabelled/epoch_100.pth --start released=convnextv2-atto_fcmae \\
      --fractions 0.1 0.25 1 --seeds 3
  python tools/compare_starts.py data/street/config.py --start scratch --start mine=backbone.pth --frozen \\
      -- --cfg-options train_cfg.max_iters=500

An interrupted comparison goes on when the same command is run again. Arguments after -- go to tools/train.py."""


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/compare_starts.py``; arguments after ``--`` become ``train_args``."""
    parser = ArgumentParser(
        description='Train one recipe from several starts on nested fractions of the labels, and write a table, '
        'figures, paired differences with confidence intervals, and what follows from them.',
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of the task')
    parser.add_argument(
        '--start',
        action='append',
        required=True,
        metavar='NAME=CHECKPOINT',
        help=f'a start: a name, and a checkpoint file, URL or public model; or {SCRATCH!r}, random weights. Twice or '
        'more; differences are to the first',
    )
    parser.add_argument(
        '--fractions', type=float, nargs='+', default=[0.1, 0.25, 1.0], help='shares of the labels; default 0.1 0.25 1'
    )
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds, from 0; default 3')
    parser.add_argument('--frozen', action='store_true', help='train the heads only, on frozen features')
    parser.add_argument(
        '--as-recipe',
        action='store_true',
        help=f"keep the recipe's frozen stages and layer decay. Otherwise, with {SCRATCH!r} among the starts, all "
        'layers train at one rate from every start, since random layers must not stay random',
    )
    parser.add_argument('--work-dir', help='folder for the runs and the results; default work_dirs/CONFIG_NAME_starts')
    add_weights_dir(parser)
    metric = f'metric to compare; default {", ".join(METRICS.values())}'
    return parse_run_options(parser, argv, metric, 'write the results of existing runs without training')


def compare_starts(args: Namespace) -> None:
    """Entry point of ``tools/compare_starts.py``: train the unfinished runs, and write the results after each.

    Raises:
        ValueError: If the arguments contradict each other or the config.
        RuntimeError: If runs failed, after all others were trained.
    """
    runs = plan_runs(args)
    waiting = [run for run in runs if not run.is_finished()]
    if args.dry_run:
        for run in waiting:
            print(run.line())
        return
    failed = []
    for number, run in enumerate([] if args.table else waiting, 1):
        print(f'{number}/{len(waiting)}  {run.folder.name}: output in {run.folder / "console.log"}', flush=True)
        if not train(run):
            failed.append(run)
            print(f'  failed: see {run.folder / "console.log"}', flush=True)
            continue
        score = read_score(run, args)
        print(f'  {score.images:,} labelled images: {metric_of(args, run)} {score.value:.1f}', flush=True)
        write_results(runs, args)
    print(write_results(runs, args))
    if failed:
        raise RunError(f'{len(failed)} of {len(runs)} runs failed, see above; run the same command to continue')


def work_dir_of(args: Namespace) -> Path:
    return Path(args.work_dir or Path('work_dirs', f'{Path(args.config).stem}_starts'))


def starts_of(args: Namespace) -> dict[str, str | None]:
    """Return the checkpoint of each start by its name, None for random weights.

    Raises:
        ValueError: If a start is not ``NAME=CHECKPOINT``, a name is repeated or a checkpoint does not exist.
    """
    starts: dict[str, str | None] = {}
    for given in args.start:
        name, equals, checkpoint = given.partition('=')
        if not re.fullmatch(r'[\w.-]+', name) or bool(equals) != bool(checkpoint) or (not equals and name != SCRATCH):
            raise UserError(
                f'--start {given}: expected NAME=CHECKPOINT, with a name of letters, digits and . _ -, or {SCRATCH}'
            )
        if name in starts:
            raise UserError(f'--start {given}: {name!r} is there twice; give each start a name of its own')
        check_checkpoint(checkpoint, f'--start {name}')
        starts[name] = checkpoint or None
    if len(starts) < 2:
        raise UserError(f'--start {args.start[0]}: one start has nothing to be compared with; add another --start')
    return starts


def plan_runs(args: Namespace) -> list[Run]:
    """Return the runs: all starts of a fraction, all fractions of a seed, so pairs are complete early.

    Raises:
        ValueError: If the arguments contradict each other or the config.
    """
    starts, fractions = starts_of(args), sorted(set(args.fractions))
    if args.seeds < 1:
        raise UserError(f'--seeds {args.seeds}: expected the number of seeds, 1 or more')
    if not all(0 < one <= 1 for one in fractions):
        raise UserError(f'--fractions {" ".join(map(str, args.fractions))}: expected shares in (0, 1], such as 0.1')
    keys = [CHECKPOINT, 'model.backbone.init_cfg', *([FROZEN] if args.frozen else [])]
    check_train_args(args.config, args.train_args, OWN_FLAGS, keys)
    common = common_options(args, starts)
    note_plan(work_dir_of(args), PLAN, dict(config=str(args.config), options=common, train_args=args.train_args))
    for start, checkpoint in starts.items():  # others may be added later
        note_plan(work_dir_of(args), f'{start}.json', dict(checkpoint=checkpoint))
    runs = []
    for seed, fraction, (start, checkpoint) in product(range(args.seeds), fractions, starts.items()):
        settings = dict(start=start, fraction=fraction, seed=seed)
        folder = work_dir_of(args) / f'{start}_{fraction:g}_seed{seed}'
        init = 'model.backbone.init_cfg=None' if checkpoint is None else f'{CHECKPOINT}={checkpoint}'
        flags = ['--seed', str(seed), '--fraction', f'{fraction:g}']
        runs.append(Run(settings, folder, command_of(args, folder, [init, *common], flags)))
    return runs


def common_options(args: Namespace, starts: dict[str, str | None]) -> list[str]:
    """Return overrides for all runs: what trains is the same from every start, and one checkpoint is kept."""
    given = parse_train_args([args.config, *args.train_args]).cfg_options or {}
    cfg = load_config(args.config, given)
    backbone = cfg.get('model', {}).get('backbone') or {}
    if cfg.get('val_cfg') is None:
        raise UserError(f'{args.config} has no evaluation (val_cfg): give the config of a task')
    if not isinstance(backbone.get('init_cfg'), dict):
        raise UserError(
            f"{args.config}: model.backbone.init_cfg is not a dict: set dict(type='ConvNeXtV2Pretrained', "
            'checkpoint=None) in the config, so that the starts can replace its checkpoint'
        )
    options = ['default_hooks.checkpoint.max_keep_ckpts=1']
    if args.frozen:
        options.append(f'{FROZEN}=4')
    elif None in starts.values() and not args.as_recipe:
        if backbone.get('frozen_stages') and FROZEN not in given:
            options.append(f'{FROZEN}=0')
        decay = ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('decay_rate', 1)
        if decay != 1 and DECAY not in given:
            options.append(f'{DECAY}=1.0')
    return options


@lru_cache
def task_of(config: str) -> tuple[str, str]:
    """Return the scope of a config, and what its training is counted in."""
    cfg = load_config(config)
    return cfg.default_scope, 'iteration' if 'max_iters' in cfg.train_cfg else 'epoch'


def metric_of(args: Namespace, run: Run) -> str:
    """Return the logged name of the metric that is compared."""
    return find_metric(
        args.metric or METRICS[task_of(args.config)[0]], sorted({name for entry in logged_by(run) for name in entry})
    )


def read_curve(run: Run, args: Namespace) -> Curve:
    """Return the metric of each evaluation of a run, in percent."""
    metric, scope, logged = metric_of(args, run), task_of(args.config)[0], logged_by(run)
    factor = 100 if scope == 'mmdet' else 1  # MMDetection logs shares
    return {entry.get('step', entry.get('iter')): entry[metric] * factor for entry in logged if metric in entry}


def read_score(run: Run, args: Namespace) -> Score:
    """Return the last value of the metric, and the number of images in the fraction.

    Raises:
        ValueError: If the run did not log them.
    """
    curve = read_curve(run, args)
    log = '\n'.join(path.read_text(errors='replace') for path in sorted(run.folder.glob('*/*.log')))
    counts = re.findall(r'data +([\d,]+) of [\d,]+ images \(fraction', log)
    if not curve or not counts:
        raise UserError(f'{run.folder} has no evaluation: remove {run.folder / "finished"}, and run the command again')
    return Score(**run.settings, images=int(counts[-1].replace(',', '')), value=curve[max(curve)])


def write_results(runs: Sequence[Run], args: Namespace) -> str:
    """Write ``comparison.csv``, ``.md``, ``.png`` and ``report.html`` of the finished runs, and return the text."""
    finished = [run for run in runs if run.is_finished()]
    if not finished:
        raise UserError(f'{work_dir_of(args)} has no finished run yet')
    scores = [read_score(run, args) for run in finished]
    metric, reference = metric_of(args, finished[0]).rpartition('/')[2], next(iter(starts_of(args)))
    folder, (header, rows) = work_dir_of(args), tabulate(scores, reference)
    sentences = [*_conclusions(scores, reference, metric, len(runs))]
    with replacing(str(folder / 'comparison.csv')) as partial, open(partial, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerows([Score._fields, *((*score[:-1], f'{score.value:.4f}') for score in scores)])
    lines = [f'{metric} at the end of training', '', *map(_line, [header, ['---'] * len(header), *rows])]
    text = '\n'.join([*lines, '', *sentences])
    with replacing(str(folder / 'comparison.md')) as partial, open(partial, 'w') as file:
        file.write(text + '\n')
    curves: dict[tuple[str, float], list[Curve]] = defaultdict(list)
    for run, score in zip(finished, scores):
        curves[score.start, score.fraction].append(read_curve(run, args))
    report = Report(f'{folder.resolve().name}: which start?')
    for sentence in sentences:
        report.text(sentence)
    figures = dict(
        comparison=draw_scores(scores, reference, metric), training=draw_curves(curves, metric, task_of(args.config)[1])
    )
    captions = dict(comparison='At the end of training', training='During training: mean and range over seeds')
    for name, figure in figures.items():
        if figure is not None:
            with replacing(str(folder / f'{name}.png')) as partial:
                figure.savefig(partial, dpi=110, format='png')
            report.image(folder / f'{name}.png', captions[name])
    report.table(header, rows)
    report.code('\n'.join(run.line() for run in runs[: len(starts_of(args))]) + '\n...')
    report.write(folder / 'report.html')
    return f'{text}\n\n{folder / "report.html"}'


def _conclusions(scores: Sequence[Score], reference: str, metric: str, planned: int) -> Iterator[str]:
    """Yield what follows, and what the intervals do not cover."""
    overall, _ = find_differences(scores, reference)
    for difference in overall:
        yield conclude(difference, reference, metric)
    if not overall:
        yield 'No seed has run at every fraction from two starts yet: nothing follows.'
    if len(scores) < planned:
        yield f'{len(scores)} of {planned} runs are finished.'
    over = ', over all fractions' if len({score.fraction for score in scores}) > 1 else ''
    yield (
        f'Differences are paired by seed{over}. The intervals cover the choice of labelled images, the initial head '
        'and the order; they do not cover another pretraining or other validation images.'
    )


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'
