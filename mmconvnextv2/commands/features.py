"""``tools/analyze_features.py``: feature diversity, activation maps and class selectivity of models."""

import argparse
import csv
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ..analysis.feature_hooks import Block, depths_of, find_blocks, sites_to_square, watch_hidden, watch_outputs
from ..analysis.feature_plots import Panel, plot_maps, plot_over_depth, plot_selectivity
from ..analysis.measures import ClassSelectivity, RunningStats, cosine_distance, count_dead_and_saturated
from ..analysis.models import HELP, AnalyzedModel, load_subjects
from ..datasets.labelled_folder import LabelledImages, choose_images, choose_labelled, load_batch
from ..utils.errors import UserError
from .arguments import add_traceback, add_weights_dir

TOOL = 'python tools/analyze_features.py'
EXAMPLES = f"""examples:
  {TOOL} distance data/imagenet/val --model GRN v2.pth --model 'no GRN' v1.pth
  {TOOL} distance data/imagenet/val --model ours work_dirs/run/epoch_800.pth \\
      --model published timm:convnextv2_base.fcmae --model ViT timm:vit_base_patch16_224.mae
  {TOOL} maps dog.jpg cat.jpg --model GRN v2.pth --blocks 0 17 35
  {TOOL} selectivity data/imagenet/val --model SE configs/ablations/fcmae_convnextv2-b_se_64xb64-800e_in1k.py se.pth
"""


class Distance(NamedTuple):
    """Row of ``distance.csv``: feature cosine distance of one block, mean and standard deviation over images."""

    model: str
    block: str
    depth: float
    channels: int
    distance: float
    deviation: float
    pictures: int  # number of images; existing readers of distance.csv know this column name


@torch.inference_mode()
def measure_distance(
    subject: AnalyzedModel, dataset: LabelledImages, batch_size: int = 32, num_workers: int = 0
) -> list[Distance]:
    """Return the cosine distance of the 4C hidden features of every block, averaged over images."""
    blocks, moments, channels = find_blocks(subject.model), RunningStats(), {}

    def see(index: int, features: torch.Tensor) -> None:
        channels[index] = features.shape[2]
        moments.add(index, cosine_distance(features))

    with watch_hidden(subject.model, blocks, see):
        for images, _ in dataset.batches(batch_size, num_workers):
            subject.forward(images)
    return [
        Distance(subject.label, block.name, depth, channels[index], *moments.mean_and_deviation(index), len(dataset))
        for index, (block, depth) in enumerate(zip(blocks, depths_of(blocks)))
    ]


@torch.inference_mode()
def measure_selectivity(
    subject: AnalyzedModel, dataset: LabelledImages, num_classes: int, batch_size: int = 32, num_workers: int = 0
) -> dict[str, np.ndarray]:
    """Return the class selectivity indices (C, ) of the output channels of each block, by name of the block."""
    blocks, selectivity = find_blocks(subject.model), ClassSelectivity(num_classes)
    for images, labels in dataset.batches(batch_size, num_workers):
        with watch_outputs(subject.model, blocks, partial(selectivity.add, labels=labels)):
            subject.forward(images)
    return {block.name: selectivity.indices(index).numpy() for index, block in enumerate(blocks)}


@torch.inference_mode()
def collect_maps(subject: AnalyzedModel, images: torch.Tensor, chosen: Sequence[int]) -> dict[int, torch.Tensor]:
    """Return the hidden features (B, N, 4C) of the chosen blocks for uint8 images (B, 3, H, W)."""
    blocks, maps = find_blocks(subject.model), {}
    with watch_hidden(
        subject.model, blocks, lambda index, features: maps.update({index: features.cpu()}) if index in chosen else None
    ):
        subject.forward(images)
    return maps


def choose_blocks(blocks: Sequence[Block], given: Sequence[str]) -> list[int]:
    """Return the indices of blocks given by index or name; five from first to last if none are given.

    Raises:
        ValueError: If a block does not exist.
    """
    if not given:
        return sorted({round(step * (len(blocks) - 1) / 4) for step in range(5)})
    names = [block.name for block in blocks]
    numbers = [names.index(one) if one in names else int(one) if one.isdecimal() else len(blocks) for one in given]
    wrong = [one for one, number in zip(given, numbers) if number >= len(blocks)]
    if wrong:
        raise UserError(
            f'--blocks {" ".join(wrong)}: expected blocks 0 to {len(blocks) - 1}, {names[0]} to {names[-1]}'
        )
    return sorted(set(numbers))


def run_distance(args: argparse.Namespace) -> None:
    """Measure feature distances, and write ``distance.csv`` and ``distance.png`` after each model."""
    measured: dict[str, list[Distance]] = {}
    for path in args.add:
        measured.update(read_distances(path))
    dataset = LabelledImages(choose_images(args.images, args.num_images, args.seed), args.size)
    for subject in load_subjects(args.model, args.device):
        measured[subject.label] = measure_distance(subject, dataset, args.batch_size, args.num_workers)
        write_distances(args.out, measured)
        own = [row.distance for row in measured[subject.label]]
        print(
            f'{subject.label}: mean distance {np.mean(own):.4f} over {len(own)} blocks, first {own[0]:.4f}, last '
            f'{own[-1]:.4f}, {len(dataset)} images'
        )
    print(f'wrote distance.csv and distance.png to {args.out}')


def write_distances(folder: str, measured: dict[str, list[Distance]]) -> None:
    """Write the rows of each model as ``distance.csv`` and ``distance.png``."""
    rows = [row for rows in measured.values() for row in rows]
    write_csv(os.path.join(folder, 'distance.csv'), Distance._fields, rows)
    plot_over_depth(
        {label: ([row.depth for row in rows], [row.distance for row in rows]) for label, rows in measured.items()},
        'feature cosine distance',
        os.path.join(folder, 'distance.png'),
    )


def run_selectivity(args: argparse.Namespace) -> None:
    """Measure class selectivity, and write ``selectivity.csv`` and ``selectivity.png``."""
    files, labels, classes = choose_labelled(args.folder, args.per_class, args.seed)
    dataset = LabelledImages(files, args.size, labels)
    measured = {}
    for subject in load_subjects(args.model, args.device):
        blocks = measure_selectivity(subject, dataset, len(classes), args.batch_size, args.num_workers)
        measured[subject.label] = blocks
        means = [block.mean() for block in blocks.values()]
        print(
            f'{subject.label}: mean selectivity {np.mean(means):.4f} over {len(means)} blocks, first {means[0]:.4f}, '
            f'last {means[-1]:.4f}, {len(files)} images of {len(classes)} classes'
        )
    rows = [
        (label, name, channel, index)
        for label, blocks in measured.items()
        for name, block in blocks.items()
        for channel, index in enumerate(block)
    ]
    write_csv(os.path.join(args.out, 'selectivity.csv'), ('model', 'block', 'channel', 'selectivity'), rows)
    plot_selectivity(
        {label: list(blocks.values()) for label, blocks in measured.items()}, os.path.join(args.out, 'selectivity.png')
    )
    print(f'wrote selectivity.csv and selectivity.png to {args.out}')


def run_maps(args: argparse.Namespace) -> None:
    """Plot ``maps_LABEL.png`` for each model, and write the counts of dead and saturated channels to ``maps.csv``."""
    files = choose_images(args.images, args.num_images, args.seed)
    images, rows = load_batch(files, args.size), []
    for subject in load_subjects(args.model, args.device):
        blocks = find_blocks(subject.model)
        chosen = choose_blocks(blocks, args.blocks)
        panels: list[list[Panel]] = [[] for _ in files]
        for index, features in sorted(collect_maps(subject, images, chosen).items()):
            dead, saturated = count_dead_and_saturated(features, args.tolerance)
            shown = _spread(features.shape[2], args.channels)
            maps = sites_to_square(features[..., shown]).permute(0, 3, 1, 2).float().numpy()  # (B, channels, H, W)
            for number, file in enumerate(files):
                counts = dead[number].sum().item(), saturated[number].sum().item()
                rows.append((subject.label, file, blocks[index].name, features.shape[2], *counts))
                panels[number].append(
                    Panel(
                        f'{blocks[index].name}\n{counts[0]} dead, {counts[1]} saturated of {features.shape[2]}',
                        maps[number],
                    )
                )
        path = os.path.join(args.out, f'maps_{_file_name(subject.label)}.png')
        os.makedirs(args.out, exist_ok=True)
        plot_maps(images.permute(0, 2, 3, 1).numpy(), panels, subject.label, path)
        print(f'wrote {path}')
    write_csv(os.path.join(args.out, 'maps.csv'), ('model', 'picture', 'block', 'channels', 'dead', 'saturated'), rows)


def _spread(num_channels: int, num_shown: int) -> list[int]:
    """Return up to ``num_shown`` evenly spaced channels."""
    return np.linspace(0, num_channels - 1, min(num_shown, num_channels)).round().astype(int).tolist()


def _file_name(label: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in label)


def write_csv(path: str, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write a table as CSV; numbers keep all digits."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])


def read_distances(path: str) -> dict[str, list[Distance]]:
    """Read the ``distance.csv`` of an earlier run, and return the rows of each model.

    Raises:
        ValueError: If the file does not have the columns of a ``distance.csv``.
    """
    with open(path, newline='') as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Distance._fields:
        raise UserError(f'{path} is not a distance.csv: expected the columns {", ".join(Distance._fields)}')
    measured: dict[str, list[Distance]] = {}
    for model, block, depth, channels, distance, deviation, pictures in rows[1:]:
        row = Distance(model, block, float(depth), int(channels), float(distance), float(deviation), int(pictures))
        measured.setdefault(model, []).append(row)
    return measured


def parse_args(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/analyze_features.py``."""
    parser = argparse.ArgumentParser(
        description='Analyse the features of models as in the ConvNeXt V2 paper (arXiv 2301.00808).',
        epilog=f'{EXAMPLES}\n{HELP}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tools = parser.add_subparsers(dest='analysis', required=True, metavar='{distance,maps,selectivity}')

    distance = _subcommand(
        tools,
        'distance',
        run_distance,
        'feature cosine distance of every block over depth, all models in one figure (figure 4)',
    )
    distance.add_argument('images', nargs='+', help='image files or folders')
    distance.add_argument(
        '--num-images', type=_positive, default=1000, help='sample at most this many images (default 1000)'
    )
    distance.add_argument(
        '--add', nargs='+', default=[], metavar='CSV', help='include the models of earlier distance.csv files'
    )

    maps = _subcommand(
        tools, 'maps', run_maps, 'activation maps of channels, with dead and saturated ones counted (figure 3)'
    )
    maps.add_argument('images', nargs='+', help='image files or folders')
    maps.add_argument('--num-images', type=_positive, default=4, help='maximum number of rows (default 4)')
    maps.add_argument('--blocks', nargs='+', default=[], help='indices or names (default: five from first to last)')
    maps.add_argument('--channels', type=_positive, default=64, help='number of maps per block (default 64)')
    maps.add_argument(
        '--tolerance',
        type=float,
        default=0.05,
        help="dead: largest value at most this fraction of the channels' mean largest value; saturated: standard "
        'deviation over sites at most this fraction of the mean (default 0.05)',
    )

    selectivity = _subcommand(
        tools, 'selectivity', run_selectivity, "class selectivity index of the blocks' output channels (figure 7)"
    )
    selectivity.add_argument('folder', help='labelled images, one folder per class')
    selectivity.add_argument(
        '--per-class', type=_positive, help='sample at most this many images per class (default all)'
    )
    return parser.parse_args(given)


def _subcommand(tools: argparse.Action, name: str, run: object, text: str) -> argparse.ArgumentParser:
    parser = tools.add_parser(
        name,
        help=text,
        description=text,
        epilog=f'{EXAMPLES}\n{HELP}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        '--model',
        nargs='+',
        action='append',
        required=True,
        metavar=('LABEL', 'SOURCE [WEIGHTS]'),
        help='a model; repeat --model for more',
    )
    parser.add_argument('--out', default='work_dirs/analysis', help='output folder (default work_dirs/analysis)')
    parser.add_argument('--size', type=int, default=224, help='side of the square crop in pixels (default 224)')
    parser.add_argument('--batch-size', type=_positive, default=32, help='images per batch (default 32)')
    parser.add_argument('--num-workers', type=int, default=0, help='number of processes that read images (default 0)')
    parser.add_argument(
        '--device',
        type=_device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu or cuda (default: a GPU if there is one)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the sampled images (default 0)')
    add_weights_dir(parser)
    add_traceback(parser)
    return parser


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f'{text} cannot be used: {error}') from error
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is less than 1')
    return value
