"""``tools/extract_features.py``: embeddings of images by any model, their nearest neighbours, and a map of them."""

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor

from ..analysis.models import HELP, AnalyzedModel, load_subject
from ..datasets.image_files import list_images
from ..datasets.labelled_folder import LabelledImages
from ..models.convnext_v2 import ConvNeXtV2
from ..utils.atomic import replacing
from ..utils.errors import UserError
from .arguments import add_traceback, add_weights_dir

TOOL = 'python tools/extract_features.py'
FORMATS = ('.npy', '.parquet', '.tif')
MOST_THUMBNAILS = 300  # on a map
THUMBNAIL = 32  # pixels
EXAMPLES = f"""examples:
  {TOOL} convnextv2-tiny_fcmae photos --out features.npy --map map.png --neighbours neighbours.png
  {TOOL} work_dirs/run/epoch_100.pth photos --out features.parquet --stage 2
  {TOOL} base photos/a.jpg --weights backbone.pth --dense --out a.tif

MODEL is SOURCE, and --weights is WEIGHTS or FILE. {HELP.partition('. ')[2]}"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of ``tools/extract_features.py``."""
    parser = argparse.ArgumentParser(
        description='Write embeddings of images: the mean of the last map, or a map, per image.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', help='public model, checkpoint, size or config; see below')
    parser.add_argument('images', nargs='+', help='files, and folders that are searched recursively')
    parser.add_argument('--weights', help='checkpoint, for a size, a config or a model of a library')
    parser.add_argument(
        '--out',
        required=True,
        help='file: .npy, float32 (N, C), or (N, C, h, w) with --dense, with the names of the images in '
        'FILE.txt; .parquet, with columns file and features; .tif, the map of a single image, a page per channel',
    )
    parser.add_argument('--stage', type=int, choices=range(4), help='stage of the map, 0 to 3; default 3, the last')
    parser.add_argument('--dense', action='store_true', help='maps instead of their means; .npy and .tif')
    parser.add_argument('--size', type=int, default=224, help='side of the centre crop in pixels; default 224')
    parser.add_argument('--map', metavar='PNG', help='draw the images at their first two principal components')
    parser.add_argument('--neighbours', metavar='PNG', help='draw images with their five nearest by cosine')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--num-workers', type=int, default=0)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_weights_dir(parser)
    add_traceback(parser)
    return parser.parse_args(argv)


def extract(args: argparse.Namespace) -> None:
    """Entry point of ``tools/extract_features.py``."""
    files = list_images(args.images)
    check_output(args, len(files))
    subject = load_subject('model', args.model, args.weights, args.device)
    dataset = LabelledImages(files, args.size)
    batches = embed(subject, dataset.batches(args.batch_size, args.num_workers), args.stage, args.dense)
    pooled = write(args.out, files, batches)
    print(f'{args.out}: {len(files)} images, {pooled.shape[1]} channels')
    for path, draw in ((args.map, draw_map), (args.neighbours, draw_neighbours)):
        if path:
            draw(pooled, dataset, path)
            print(path)


def check_output(args: argparse.Namespace, num_images: int) -> None:
    """Raise ``ValueError`` for a file that cannot hold what is asked for, before any work is done."""
    kind = os.path.splitext(args.out)[1]
    if kind not in FORMATS:
        raise UserError(f'--out {args.out}: expected a name that ends in {", ".join(FORMATS)}')
    if kind == '.parquet' and args.dense:
        raise UserError('--dense: a .parquet file holds a vector per image; write maps as .npy')
    if kind == '.tif' and (num_images != 1 or not args.dense):
        raise UserError(
            f'--out {args.out} holds the map of one image: add --dense, and give one image, not {num_images}'
        )
    if kind == '.parquet':
        _import('pyarrow', "`make export` in a clone, or pip install 'mmconvnextv2[export]'")
    if args.map and num_images < 3:
        raise UserError(f'--map: {num_images} images have no map in two dimensions; give three or more')
    for path in (args.out, args.map, args.neighbours):
        if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise UserError(f'{path}: the folder does not exist')


def _import(package: str, advice: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f'this needs the package {package}: {advice}') from error


@torch.inference_mode()
def embed(
    subject: AnalyzedModel, batches: Iterable[tuple[Tensor, Tensor]], stage: int | None = None, dense: bool = False
) -> Iterator[np.ndarray]:
    """Yield the embeddings of each batch, float32 (B, C), or the maps (B, C, h, w) if ``dense``.

    Args:
        subject (AnalyzedModel): Model.
        batches (Iterable[tuple[Tensor, Tensor]]): Images, uint8 (B, 3, H, W), each with anything.
        stage (int, optional): Stage of our backbone, 0 to 3. Defaults to None, what the model returns last.
        dense (bool): Whether to yield maps. Defaults to False.

    Raises:
        ValueError: If the model has no stages, or returns no map.
    """
    model = subject.model
    if isinstance(model, ConvNeXtV2):
        model.out_indices, model.out_norm, model.gap_before_final_norm = (3 if stage is None else stage,), False, False
    elif stage is not None:
        raise UserError('--stage: only ConvNeXt models of this package have numbered stages')
    for images, _ in batches:
        output = subject.forward(images)
        output = output[-1] if isinstance(output, (tuple, list)) else output
        if output.ndim != 4 and dense:
            raise UserError(f'--dense: the model returns {tuple(output.shape)} for a batch, not maps')
        yield (output if dense or output.ndim == 2 else output.flatten(2).mean(2)).float().cpu().numpy()


def write(out: str, files: Sequence[str], batches: Iterable[np.ndarray]) -> np.ndarray:
    """Write batches as they come, and return the pooled features (N, C) of all images."""
    writer = dict(zip(FORMATS, (_npy, _parquet, _tif)))[os.path.splitext(out)[1]]
    pooled = []
    with replacing(out) as partial, writer(partial, files) as add:
        for batch in batches:
            add(batch)
            pooled.append(batch if batch.ndim == 2 else batch.mean((2, 3)))
    if out.endswith('.npy'):
        with replacing(f'{out}.txt') as partial, open(partial, 'w') as names:
            names.writelines(f'{file}\n' for file in files)
    return np.concatenate(pooled)


@contextmanager
def _npy(path: str, files: Sequence[str]):
    """Yield a function that appends a batch to an array on disk."""
    array, done = None, 0

    def add(batch: np.ndarray) -> None:
        nonlocal array, done
        if array is None:
            array = np.lib.format.open_memmap(path, 'w+', np.float32, (len(files), *batch.shape[1:]))
        array[done : done + len(batch)] = batch
        done += len(batch)

    yield add
    if array is not None:
        array.flush()


@contextmanager
def _parquet(path: str, files: Sequence[str]):
    """Yield a function that appends a batch to a table, a row group each."""
    arrow, parquet = _import('pyarrow', ''), import_module('pyarrow.parquet')
    schema = arrow.schema([('file', arrow.string()), ('features', arrow.list_(arrow.float32()))])
    done = 0
    with parquet.ParquetWriter(path, schema) as writer:

        def add(batch: np.ndarray) -> None:
            nonlocal done
            rows = dict(file=list(files[done : done + len(batch)]), features=list(batch))
            writer.write_table(arrow.table(rows, schema))
            done += len(batch)

        yield add


@contextmanager
def _tif(path: str, files: Sequence[str]):
    """Yield a function that writes the map of one image, a page of float32 per channel."""

    def add(batch: np.ndarray) -> None:
        done, content = cv2.imencodemulti('.tif', list(batch[0]))
        assert done
        with open(path, 'wb') as file:
            file.write(content.tobytes())

    yield add


def nearest(features: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` nearest other images of each image by cosine, nearest first: (N, count)."""
    unit = F.normalize(torch.from_numpy(features))
    found = []
    for start in range(0, len(unit), 1024):
        cosine = unit[start : start + 1024] @ unit.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2  # itself
        found.append(cosine.topk(count).indices)
    return torch.cat(found).numpy()


def place(features: np.ndarray) -> np.ndarray:
    """Return the first two principal components of N features (N, C): (N, 2)."""
    centred = torch.from_numpy(features).double()
    centred -= centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return (u[:, :2] * s[:2]).numpy()


def draw_map(features: np.ndarray, dataset: LabelledImages, path: str) -> None:
    """Draw images at their place; of many images some as thumbnails and all as points."""
    places = place(features)
    figure = Figure(figsize=(12, 9), layout='constrained')
    axes = figure.subplots()
    axes.scatter(*places.T, s=4, color='tab:grey')
    for index in range(0, len(places), -(-len(places) // MOST_THUMBNAILS)):
        image = OffsetImage(_thumbnail(dataset, index, THUMBNAIL), zoom=1)
        axes.add_artist(AnnotationBbox(image, places[index], frameon=False))
    title = f'{len(places)} images'
    axes.set(xlabel='first principal component', ylabel='second principal component', title=title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format=os.path.splitext(path)[1][1:] or 'png')


def draw_neighbours(features: np.ndarray, dataset: LabelledImages, path: str, rows: int = 8, count: int = 5) -> None:
    """Draw images, taken at even steps, each with its nearest neighbours in a row."""
    count = min(count, len(features) - 1)
    found = nearest(features, count)
    queries = range(0, len(features), -(-len(features) // rows))
    figure = Figure(figsize=(1.6 * (count + 1), 1.7 * len(queries)), layout='constrained')
    grid = figure.subplots(len(queries), count + 1, squeeze=False)
    for axes, query in zip(grid, queries):
        for column, index in enumerate([query, *found[query]]):
            axes[column].imshow(_thumbnail(dataset, index, 128))
            axes[column].axis('off')
    grid[0][0].set_title('image')
    if count:
        grid[0][1].set_title('nearest')
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format=os.path.splitext(path)[1][1:] or 'png')


def _thumbnail(dataset: LabelledImages, index: int, side: int) -> np.ndarray:
    return cv2.resize(dataset[index][0].permute(1, 2, 0).numpy(), (side, side), interpolation=cv2.INTER_AREA)
