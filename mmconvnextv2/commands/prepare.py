"""``tools/prepare.py``: from what a labelling tool exports to the layout, the split and the config of a first training.

Reads COCO json (CVAT, Roboflow, Label Studio), YOLO folders, json of labelme, VIA and Label Studio for detection, label
PNGs for segmentation, and one folder per class for classification. Nothing of the export is changed.
"""

import json
import math
import os
import shutil
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..analysis.html import Report
from ..datasets.formats import LabelledImage, Labels, Shape, read_label_maps, read_labels
from ..datasets.image_files import EXTENSIONS, class_colours, read_rgb, write_label_map
from ..utils.atomic import new_folder
from ..utils.config import read_config
from ..utils.errors import UserError
from .arguments import add_traceback
from .pack import pack_images

SPLITS = ('train', 'val')
LEAST_AREA = 1.0  # square pixels of an object
SAMPLES = 12  # images on the page
RECIPES = dict(  # by task; the letter is that of the size
    detect='mask-rcnn_convnextv2-{}_small', segment='upernet_convnextv2-{}_small', classify='convnextv2-{}_small'
)
SIZES = ('atto', 'tiny')
LEAST_PASSES = 12  # over the training images; with many of them the run gets longer


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/prepare.py``."""
    parser = ArgumentParser(
        description='Turn an export of a labelling tool into a training set: OUT/ with images, labels, a split, '
        'config.py and samples.html.',
        epilog='Example: python tools/prepare.py export/annotations/instances_default.json --out data/own',
    )
    parser.add_argument(
        'source',
        help='json (COCO, VIA, Label Studio) or folder (YOLO, labelme, Roboflow, label PNGs, one per class, '
        'unlabelled images)',
    )
    parser.add_argument('--images', help='folder of the images; default: looked for around SOURCE')
    parser.add_argument('--out', required=True, help='folder to write; it must not exist')
    parser.add_argument('--task', choices=(*RECIPES, 'pretrain'), default='detect', help='default detect')
    parser.add_argument('--size', choices=SIZES, default='atto', help='model; tiny needs a GPU; default atto')
    parser.add_argument('--val', type=float, default=0.2, help='share of images for validation; default 0.2')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split; default 0')
    group = parser.add_argument_group('pretraining', 'OUT is one file of decoded images; a killed run continues')
    group.add_argument('--side', type=int, default=256, help='short side of larger images, 0 for none; default 256')
    group.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes; default one per core')
    add_traceback(parser)
    return parser.parse_args(argv)


def prepare(args: Namespace) -> None:
    """Entry point of ``tools/prepare.py``.

    Raises:
        ValueError: If the export cannot be read, images are missing, or a class would have no objects to learn.
    """
    if args.task == 'pretrain':
        print('\n'.join(pack_images(args.source, args.out, args.side, args.workers)))
        return
    if not 0 < args.val < 1:
        raise UserError(f'--val {args.val}: expected a share between 0 and 1')
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
    with new_folder(args.out) as folder:
        lines = PREPARE[args.task](args, Path(folder))
    print('\n'.join(lines))
    print(f'{args.out}: images, labels, config.py and samples.html; look at the samples, then start with')
    print(f'    python tools/train.py {os.path.join(args.out, "config.py")}')


def prepare_detection(args: Namespace, folder: Path) -> list[str]:
    """Write COCO json, images, config and samples, and return what to print."""
    labels = read_labels(args.source)
    files = find_images(labels, args.source, args.images)
    notes, sizes = list(labels.notes), {}
    for image in labels.images:
        sizes[image.file] = read_rgb(files[image.file]).shape[:2]
        repair_shapes(image, sizes[image.file], notes)
    boxes = sum(shape.is_box for image in labels.images for shape in image.shapes)
    if boxes:
        notes.append(f'{boxes} objects are boxes without an outline: their masks are the boxes, so ignore mask AP')
    names = [{shape.name for shape in image.shapes} for image in labels.images]
    parts = split_images(labels.images, names, args.val, args.seed)
    counts = {}
    for split, chosen in zip(SPLITS, parts):
        (folder / split).mkdir()
        content = _coco_of(chosen, labels.classes, files, sizes, folder / split)
        (folder / f'{split}.json').write_text(json.dumps(content))
        counts[split] = Counter(shape.name for image in chosen for shape in image.shapes)
    _write_config(args, folder, labels.classes, len(parts[0]))
    _write_page(
        folder,
        args,
        labels.classes,
        counts,
        notes,
        [
            (files[image.file], _draw_shapes(read_rgb(files[image.file]), image.shapes, labels.classes))
            for image in labels.images[:SAMPLES]
        ],
    )
    return _summary(labels.tool, parts, labels.classes, counts, 'objects', notes)


def prepare_segmentation(args: Namespace, folder: Path) -> list[str]:
    """Write label PNGs, images, config and samples, and return what to print."""
    maps = read_label_maps(args.source)
    found = {label: np.unique(maps.read(label)) for _, label in maps.pairs}
    images = [LabelledImage(image) for image, _ in maps.pairs]
    label_of = dict(maps.pairs)
    names = [{maps.classes[value] for value in found[label_of[one.file]] if value < 255} for one in images]
    parts = split_images(images, names, args.val, args.seed)
    suffixes = {Path(image.file).suffix for image in images}
    suffix = suffixes.pop() if len(suffixes) == 1 else '.png'
    counts, notes = {}, []
    for split, chosen in zip(SPLITS, parts):
        (folder / 'images' / split).mkdir(parents=True)
        (folder / 'labels' / split).mkdir(parents=True)
        counts[split] = Counter()
        for image in chosen:
            labels, pixels = maps.read(label_of[image.file]), read_rgb(image.file)
            if labels.shape != pixels.shape[:2]:
                raise UserError(
                    f'{image.file} is {pixels.shape[1]} x {pixels.shape[0]} pixels, its labels are {labels.shape[1]} x '
                    f'{labels.shape[0]}: export both at one size'
                )
            stem = Path(image.file).stem
            target = folder / 'images' / split / f'{stem}{suffix}'
            if Path(image.file).suffix == suffix:
                shutil.copyfile(image.file, target)
            else:  # several formats become one
                cv2.imwrite(str(target), pixels[..., ::-1])
            write_label_map(labels, str(folder / 'labels' / split / f'{stem}.png'))
            counts[split].update(maps.classes[value] for value in np.unique(labels) if value < 255)
    _write_config(args, folder, maps.classes, len(parts[0]), suffix)
    _write_page(
        folder,
        args,
        maps.classes,
        counts,
        notes,
        [(image, _draw_map(read_rgb(image), maps.read(label))) for image, label in maps.pairs[:SAMPLES]],
    )
    return _summary('label PNGs', parts, maps.classes, counts, 'images', notes)


def prepare_classification(args: Namespace, folder: Path) -> list[str]:
    """Write one folder of images per split and class, config and samples, and return what to print.

    Raises:
        ValueError: If there are not at least two folders of images, named like the classes.
    """
    source = Path(args.source)
    val = next((source / name for name in ('val', 'valid', 'validation') if (source / name).is_dir()), None)
    roots = dict(train=source / 'train', val=val) if val and (source / 'train').is_dir() else {None: source}
    images, name_of = [], {}
    for split, root in roots.items():
        for place in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
            for path in sorted(place.rglob('*')):
                if path.suffix.lower() in EXTENSIONS:
                    images.append(LabelledImage(str(path), split=split))
                    name_of[str(path)] = place.name
    classes = sorted(set(name_of.values()))
    if len(classes) < 2:
        raise UserError(f'{source}: expected one folder of images per class, at least two; found {classes}')
    notes, readable = [], []
    for image in images:
        try:
            read_rgb(image.file)
            readable.append(image)
        except UserError as error:
            notes.append(f'{error}: left out')
    images = readable
    parts = split_images(images, [{name_of[image.file]} for image in images], args.val, args.seed)
    counts = {}
    for split, chosen in zip(SPLITS, parts):
        counts[split] = Counter(name_of[image.file] for image in chosen)
        for number, image in enumerate(chosen):
            place = folder / split / name_of[image.file]
            place.mkdir(parents=True, exist_ok=True)
            name = Path(image.file).name
            shutil.copyfile(image.file, place / (f'{number}_{name}' if (place / name).exists() else name))
    _write_config(args, folder, classes, len(parts[0]))
    spread = images[:: max(1, len(images) // SAMPLES)][:SAMPLES]
    samples = [(f'{name_of[image.file]}/{Path(image.file).name}', read_rgb(image.file)) for image in spread]
    _write_page(folder, args, classes, counts, notes, samples)
    return _summary('folders', parts, classes, counts, 'images', notes)


PREPARE = dict(detect=prepare_detection, segment=prepare_segmentation, classify=prepare_classification)


def find_images(labels: Labels, source: str, given: str | None) -> dict[str, str]:
    """Return the file of each image of an export, looked for by path and then by name.

    Raises:
        ValueError: If images are missing, or two files have the name of one.
    """
    root = Path(given or source)
    root = root if root.is_dir() else root.parent
    roots = [root] if given else [root, root.parent]
    by_name: dict[str, list[Path]] = {}
    for place in roots:
        by_name = {}
        for path in sorted(place.rglob('*')):
            if path.suffix.lower() in EXTENSIONS:
                by_name.setdefault(path.name, []).append(path)
        if any(Path(image.file).name in by_name for image in labels.images):
            break
    files, missing = {}, []
    for image in labels.images:
        name = Path(image.file.replace('\\', '/'))
        candidates = [path for path in by_name.get(name.name, []) if str(path).endswith(str(name))]
        candidates = candidates or by_name.get(name.name, [])
        same_split = [path for path in candidates if image.split and image.split[:3] in str(path)]
        candidates = same_split if len(candidates) > 1 and same_split else candidates
        if len(candidates) > 1:
            raise UserError(f'{image.file}: {candidates[0]} and {candidates[1]} have this name: pass --images')
        if candidates:
            files[image.file] = str(candidates[0])
        else:
            missing.append(image.file)
    if missing:
        raise UserError(
            f'{len(missing)} of {len(labels.images)} images are not below {roots[-1]}, such as {missing[0]}: export '
            'with images, or pass their folder with --images'
        )
    return files


def split_images(
    images: list[LabelledImage], names: list[set[str]], share: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images for training and validation, so that each class with two images or more occurs in both.

    A split that the export gives is kept. Otherwise images are shuffled, and rare classes are dealt first.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f'{len(images)} labelled images: expected at least 2, one to train and one to validate')
    if {image.split for image in images} == set(SPLITS):
        return tuple([image for image in images if image.split == split] for split in SPLITS)
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    most = min(max(1, round(share * len(images))), len(images) - 1)
    left = Counter(name for found in names for name in found)  # images of each class that remain for training
    chosen: list[int] = []

    def choose(candidates: Iterable[int]) -> None:
        """Move the first candidate without which every class can still be trained."""
        index = next((one for one in candidates if all(left[name] > 1 for name in names[one])), None)
        if index is not None and len(chosen) < most:
            chosen.append(index)
            left.subtract(names[index])

    for name in sorted(left, key=lambda name: (left[name], name)):  # rare classes first
        if not any(name in names[index] for index in chosen):
            choose(index for index in order if name in names[index])
    for index in order:
        if index not in chosen:
            choose([index])
    chosen += [index for index in order if index not in chosen][: most - len(chosen)]  # where all classes are rare
    train = [image for index, image in enumerate(images) if index not in chosen]
    return train, [image for index, image in enumerate(images) if index in chosen]


def repair_shapes(image: LabelledImage, size: tuple[int, int], notes: list[str]) -> None:
    """Clip the outlines of an image to its height and width, drop objects of which nothing is left, and note both."""
    kept = []
    for shape in image.shapes:
        clipped = [_clip(polygon, size) for polygon in shape.polygons]
        moved = [abs(one - other) for pair in zip(shape.polygons, clipped) for one, other in zip(*pair)]
        if max(moved, default=0) > 1:
            notes.append(f'{image.file}: an outline of {shape.name} left the image and was clipped')
        if shape.rle is None and sum(map(_area, clipped)) < LEAST_AREA:
            notes.append(f'{image.file}: a {shape.name} of less than {LEAST_AREA:g} pixel was left out')
        else:
            kept.append(shape._replace(polygons=clipped))
    image.shapes = kept


def _clip(polygon: list[float], size: tuple[int, int]) -> list[float]:
    height, width = size
    return [min(max(number, 0.0), (width, height)[index % 2]) for index, number in enumerate(polygon)]


def _area(polygon: list[float]) -> float:
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def _coco_of(
    images: list[LabelledImage], classes: list[str], files: dict[str, str], sizes: dict[str, tuple[int, int]], to: Path
) -> dict[str, Any]:
    """Copy images, and return their COCO json."""
    content: dict[str, Any] = dict(
        images=[], annotations=[], categories=[dict(id=label + 1, name=name) for label, name in enumerate(classes)]
    )
    taken: set[str] = set()
    for number, image in enumerate(images, 1):
        name = Path(files[image.file]).name
        name = f'{number}_{name}' if name in taken else name
        taken.add(name)
        shutil.copyfile(files[image.file], to / name)
        height, width = sizes[image.file]
        content['images'].append(dict(id=number, file_name=name, height=height, width=width))
        for shape in image.shapes:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=classes.index(shape.name) + 1,
                    iscrowd=int(shape.crowd),
                    **_outline(shape, height, width),
                )
            )
    return content


def _outline(shape: Shape, height: int, width: int) -> dict[str, Any]:
    if shape.rle is None:
        corners = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in shape.polygons])
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        area = sum(map(_area, shape.polygons))
        bbox = [float(left), float(top), float(right - left), float(bottom - top)]
        return dict(segmentation=shape.polygons, area=area, bbox=bbox)
    rle = shape.rle
    if isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, height, width)
    encoded = dict(rle, counts=rle['counts'] if isinstance(rle['counts'], bytes) else rle['counts'].encode())
    area, bbox = float(coco_mask.area(encoded)), coco_mask.toBbox(encoded).tolist()
    return dict(segmentation=shape.rle, area=area, bbox=bbox)


def _write_config(args: Namespace, folder: Path, classes: list[str], images: int, suffix: str = '') -> None:
    root = os.path.abspath(args.out) + '/' * (args.task == 'detect')
    heads = dict(
        detect='roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes)))',
        segment='decode_head=dict(num_classes=len(classes)), auxiliary_head=dict(num_classes=len(classes))',
        classify='head=dict(num_classes=len(classes))',
    )
    ending = f', img_suffix={suffix!r}' if suffix else ''
    recipe = RECIPES[args.task].format(args.size[0])
    cfg = read_config(recipe)
    iterations = math.ceil(images * LEAST_PASSES / cfg.train_dataloader.batch_size)
    lines = [
        f'# Written by tools/prepare.py from {os.path.basename(os.path.normpath(args.source))}.',
        f"_base_ = 'mmconvnextv2::small/{recipe}.py'",
        f'classes = {tuple(classes)!r}',
        f'data_root = {root!r}',
        f'model = dict({heads[args.task]})',
        f'own = dict(data_root=data_root, metainfo=dict(classes=classes){ending})',
    ]
    if iterations > cfg.train_cfg.max_iters:
        lines.append(f'train_cfg = dict(max_iters={iterations})  # {LEAST_PASSES} passes over {images} images')
    if args.task == 'segment':
        lines += [
            "own_labels = dict(type='LoadCheckedLabels', num_classes=len(classes))",
            'steps = [_base_.resize, _base_.crop, _base_.flip, _base_.colour, _base_.pack]',
            'train_pipeline = [_base_.load, own_labels, *steps]',
            'test_pipeline = [_base_.load, _base_.test_resize, own_labels, _base_.pack]',
            'train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **own))',
            'val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **own))',
            'test_dataloader = val_dataloader',
        ]
    else:
        lines += [
            'train_dataloader = dict(dataset=own)',
            'val_dataloader = dict(dataset=own)',
            'test_dataloader = val_dataloader',
        ]
    if args.task == 'classify':
        lines.append('data_preprocessor = dict(num_classes=len(classes))')
    if args.task == 'detect':
        lines += [
            "val_evaluator = dict(ann_file=data_root + 'val.json')",
            'test_evaluator = val_evaluator',
        ]
    (folder / 'config.py').write_text('\n'.join(lines) + '\n')


def _draw_shapes(image: np.ndarray, shapes: list[Shape], classes: list[str]) -> np.ndarray:
    drawn, colours = np.ascontiguousarray(image), class_colours(len(classes))
    thickness = max(1, max(image.shape[:2]) // 300)
    for shape in shapes:
        colour = tuple(map(int, colours[classes.index(shape.name)]))
        outlines = [np.array(polygon).reshape(-1, 1, 2).round().astype(np.int32) for polygon in shape.polygons]
        cv2.polylines(drawn, outlines, True, colour, thickness)
        if outlines:
            left, top = outlines[0].min(0)[0]
            place = (int(left), max(int(top) - 3, 12))
            cv2.putText(drawn, shape.name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thickness, colour, thickness)
    return drawn


def _draw_map(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    colours = class_colours(256)[labels]
    return np.where((labels == 255)[..., None], image, image // 2 + colours // 2)


def _write_page(
    folder: Path,
    args: Namespace,
    classes: list[str],
    counts: dict[str, Counter],
    notes: list[str],
    samples: list[tuple[str, np.ndarray]],
) -> None:
    page = Report(f'Samples of {os.path.basename(os.path.normpath(args.out))}')
    unit = 'objects' if args.task == 'detect' else 'images'
    for path, drawn in samples:
        page.image(drawn, os.path.basename(path))
    rows = [[name, *(counts[split][name] for split in SPLITS)] for name in classes]
    page.table(['class', *(f'{split}: {unit}' for split in SPLITS)], rows)
    for note in notes:
        page.text(note)
    page.write(folder / 'samples.html')


def _summary(
    tool: str,
    parts: tuple[list[LabelledImage], list[LabelledImage]],
    classes: list[str],
    counts: dict[str, Counter],
    unit: str,
    notes: list[str],
) -> list[str]:
    lines = [f'{tool}: {sum(map(len, parts))} images, {len(parts[0])} for training and {len(parts[1])} for validation']
    width = max(map(len, classes))
    for name in classes:
        warning = '' if all(counts[split][name] for split in SPLITS) else f'  <- none in {_lacking(counts, name)}'
        numbers = ', '.join(f'{counts[split][name]} {unit} in {split}' for split in SPLITS)
        lines.append(f'    {name:{width}}  {numbers}{warning}')
    shown = notes[:8] + [f'and {len(notes) - 8} more, on samples.html'] * (len(notes) > 8)
    return lines + [f'note: {note}' for note in shown]


def _lacking(counts: dict[str, Counter], name: str) -> str:
    return ' and '.join(split for split in SPLITS if not counts[split][name])
