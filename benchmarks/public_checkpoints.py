"""Evaluate public checkpoints by name and compare with what was published for them.

    python benchmarks/public_checkpoints.py [PATTERN] --data data --out work_dirs/public_checkpoints

Each model is tested by ``tools/test.py NAME`` in a process of its own. Models whose result is in OUT are not tested
again, so an interrupted run continues. Arguments after ``--`` are passed on: ``-- --tta``, ``-- --cfg-options ...``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmconvnextv2.utils.config import load_config
from mmconvnextv2.utils.public_models import PublicModel, list_models

ROOT = Path(__file__).parents[1]
METRICS = {  # of the evaluators: name in published results, factor
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'mIoU': ('mIoU', 1),
    'accuracy/top1': ('top-1', 1),
}
PLACES = dict(  # below --data, as in the recipes
    mmdet=[
        'test_dataloader.dataset.data_root={data}/coco/',
        'test_evaluator.ann_file={data}/coco/annotations/instances_val2017.json',
    ],
    mmseg=['test_dataloader.dataset.data_root={data}/ade/ADEChallengeData2016'],
    mmpretrain=['test_dataloader.dataset.data_root={data}/imagenet'],
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this script."""
    given = list(sys.argv[1:] if argv is None else argv)
    given, passed = (given[: given.index('--')], given[given.index('--') + 1 :]) if '--' in given else (given, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*', help='part of a name, recipe or task, or a pattern with *')
    parser.add_argument('--data', help='folder with coco/, ade/ and imagenet/; default: where the recipes look')
    parser.add_argument('--out', default='work_dirs/public_checkpoints', help='folder for runs and the table')
    args = parser.parse_args(given)
    args.passed = passed
    return args


def evaluate(model: PublicModel, args: argparse.Namespace) -> dict | str:
    """Return the metrics of a model, or the last line of what went wrong."""
    folder = Path(args.out) / model.name
    result = folder / 'metrics.json'
    if result.exists():
        return json.loads(result.read_text())
    options = [] if args.data is None else [one.format(data=args.data) for one in PLACES[_scope(model)]]
    passed = list(args.passed)
    if options:
        where = passed.index('--cfg-options') + 1 if '--cfg-options' in passed else len(passed)
        passed[where:where] = options if '--cfg-options' in passed else ['--cfg-options', *options]
    command = [sys.executable, str(ROOT / 'tools' / 'test.py'), model.name, '--work-dir', str(folder), *passed]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return (run.stderr.strip() or run.stdout.strip() or 'no message').splitlines()[-1]
    newest = max(folder.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    metrics = json.loads(newest.read_text().splitlines()[-1])
    result.write_text(json.dumps(metrics))
    return metrics


def _scope(model: PublicModel) -> str:
    return load_config(model.config).default_scope


def measured(metrics: dict | str) -> str:
    """Return metrics in the words of published results."""
    if isinstance(metrics, str):
        return f'failed: {metrics}'
    found = [f'{metrics[key] * factor:.1f} {name}' for key, (name, factor) in METRICS.items() if key in metrics]
    return ', '.join(found) or 'none, as when nothing was detected'


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate all models that match and write the table."""
    args = parse_args(argv)
    rows = ['| model | published | measured |', '| --- | --- | --- |']
    for model in list_models(args.pattern):
        if model.task == 'Pretraining':  # FCMAE without a decoder, ImageNet-22K without validation images
            continue
        row = f'| {model.name} | {model.published or "-"} | {measured(evaluate(model, args))} |'
        print(row, flush=True)
        rows.append(row)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    (Path(args.out) / 'table.md').write_text('\n'.join(rows) + '\n')


if __name__ == '__main__':
    main()
