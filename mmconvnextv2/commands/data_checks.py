"""Checks of a config's data before a run starts: paths, class names and class counts."""

import codecs
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..utils.config import inner_datasets
from ..utils.errors import UserError
from .label_checks import check_labels

FOLDER_DATASETS = ('CustomDataset', 'ImageNet')  # classes are numbered by their folders
METRIC_PACKAGES = dict(
    LVISMetric=('lvis', 'pip install git+https://github.com/lvis-dataset/lvis-api.git'),
    CityScapesMetric=('cityscapesscripts', 'pip install cityscapesScripts'),
)
SOFTMAX_HEADS = ('UPerHead', 'PSPHead', 'FCNHead', 'ASPPHead', 'SegformerHead')


def _dataset_paths(dataset: dict) -> Iterator[tuple[str, str]]:
    """Yield (config key, path) for the root, the annotation file and the image folders of a data set."""
    root = dataset.get('data_root') or ''
    if root:
        yield 'data_root', root
    if dataset.get('ann_file'):
        yield 'ann_file', os.path.join(root, dataset['ann_file'])
    prefix = dataset.get('data_prefix') or {}
    for key, folder in prefix.items() if isinstance(prefix, dict) else [('', prefix)]:
        if isinstance(folder, str):
            yield f'data_prefix.{key}'.rstrip('.'), os.path.join(root, folder)


def check_data(cfg: Config, splits: Sequence[str], read_files: bool = True) -> None:
    """Check that the data of the given splits exists and that its files, the config and the model agree.

    Classes are compared by name, never only by order or count, between the config, the annotation files or class
    folders of all splits, and the evaluators' files. Only the first of several processes reads files.

    Args:
        cfg (Config): Config of the run.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        read_files (bool): Whether to read annotation files and the first labels, too. Defaults to True.

    Raises:
        ValueError: If data is missing or inconsistent; the message names the config key and the path.
    """
    read_files = read_files and is_first_process()
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        for dataset in inner_datasets(loader.get('dataset') or {}):
            for key, path in _dataset_paths(dataset):
                if '://' not in path and not os.path.exists(path):
                    raise UserError(
                        f'{split}_dataloader.dataset.{key}: {path!r} does not exist: arrange the data as in '
                        'configs/README.md, or set the key with --cfg-options'
                    )
            check_class_count(cfg, dataset, split, read_files)
            if read_files:
                _check_endings(dataset, split)
        _check_top_k(cfg, split)
        _check_metric_packages(cfg, split)
        if read_files:
            _check_evaluator(cfg, split)
    if cfg.default_scope == 'mmpretrain':
        _check_folders(cfg, splits)
    if cfg.default_scope == 'mmseg':
        _check_segmentor(cfg, splits)
        if read_files:
            check_labels(cfg, splits)


def is_first_process() -> bool:
    """Return whether this is the first process of torchrun, srun or mpirun, before torch.distributed starts."""
    ranks = [os.environ[name] for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK') if name in os.environ]
    return not ranks or ranks[0] == '0'


def _check_endings(dataset: dict, split: str) -> None:
    """Raise ``ValueError`` for images whose suffix differs from ``img_suffix`` only in case, which mmseg would skip."""
    suffix, root, prefix = dataset.get('img_suffix'), dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    if not suffix or dataset.get('ann_file') or not isinstance(prefix, dict):  # MMPretrain's is a string
        return
    folder = os.path.join(root, prefix.get('img_path') or '')
    if not os.path.isdir(folder):
        return
    names = [name for _, _, files in os.walk(folder) for name in files if name.lower().endswith(suffix.lower())]
    others = [name for name in names if not name.endswith(suffix)]
    if others:
        raise UserError(
            f'{split}_dataloader.dataset.img_suffix={suffix!r}: {len(others)} of {len(names)} images '
            f'in {folder} have another suffix, such as {others[0]}, and would be skipped: rename them'
        )


def _evaluators(cfg: Config, split: str) -> Sequence[dict]:
    evaluators = cfg.get(f'{split}_evaluator') or []
    return evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]


def _check_top_k(cfg: Config, split: str) -> None:
    """Check that the top-k of a classifier's evaluators does not exceed the number of classes."""
    counts = model_class_counts(cfg.model) if cfg.default_scope == 'mmpretrain' else set()
    for evaluator in _evaluators(cfg, split):
        topk = evaluator.get('topk', 1)
        if counts and max([topk] if isinstance(topk, int) else topk) > min(counts):
            raise UserError(
                f'{split}_evaluator.topk={topk}: there are {min(counts)} classes. Set topk=1, and remove the '
                'larger values'
            )


def _check_metric_packages(cfg: Config, split: str) -> None:
    """Check for the packages that metrics need before training, since some fail only at the first evaluation."""
    for evaluator in _evaluators(cfg, split):
        kind = str(evaluator.get('type')).rpartition('.')[2]
        package, command = METRIC_PACKAGES.get(kind, (None, None))
        spec = find_spec(package) if package else None
        if package and spec is None:
            problem = 'which is not installed'
        elif package == 'lvis' and 'np.float)' in Path(spec.origin).with_name('eval.py').read_text():
            problem = 'and the installed release stops at np.float, which NumPy has removed'
        else:
            continue
        raise UserError(
            f'{split}_evaluator.type={kind!r} needs the package {package}, {problem}: `{command}`, or set '
            f'{split}_evaluator to another metric; to train without evaluation, add --cfg-options val_cfg=None '
            'val_dataloader=None val_evaluator=None'
        )


def _check_evaluator(cfg: Config, split: str) -> None:
    """Check that an evaluator's annotation file exists and lists the images of the data loader."""
    datasets = list(inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}))
    for evaluator in _evaluators(cfg, split):
        theirs = evaluator.get('ann_file') or ''
        for dataset in datasets if theirs.endswith('.json') and '://' not in theirs else []:
            if not os.path.isfile(theirs):
                raise UserError(
                    f'{split}_evaluator.ann_file={theirs!r} does not exist: set it to the annotation file '
                    f'of {split}_dataloader'
                )
            ours = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if os.path.isfile(ours) and not os.path.samefile(ours, theirs) and _images_of(ours) != _images_of(theirs):
                raise UserError(
                    f'{split}_evaluator.ann_file={theirs!r} lists other images than {ours!r} of '
                    f'{split}_dataloader: set it to the same file'
                )


def _images_of(path: str) -> set:
    from ..datasets.coco import decode_json  # needs mmdet

    with open(path, 'rb') as file:
        content = decode_json(file.read(), path)
    return {(one.get('id'), one.get('file_name')) for one in content.get('images', [])}


def _check_folders(cfg: Config, splits: Sequence[str]) -> None:
    """Check that all splits have the same class folders, and sort class names as mmpretrain does: alphabetically."""
    folders = {}
    for split in splits:
        for dataset in inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}):
            prefix = dataset.get('data_prefix') or {}
            prefix = prefix.get('img_path', '') if isinstance(prefix, dict) else prefix
            root = os.path.join(dataset.get('data_root') or '', prefix or dataset.get('split') or '')
            by_folder = str(dataset.get('type')).rpartition('.')[2] in FOLDER_DATASETS and not dataset.get('ann_file')
            if not by_folder or dataset.get('with_label') is False or not os.path.isdir(root):
                continue
            names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
            hidden = [name for name in names if name.startswith('.')]
            if hidden:
                raise UserError(
                    f'{root} has a hidden folder {hidden[0]!r}, which would be counted as a class: remove it'
                )
            _name_folders(dataset, names, split, root)
            folders[root] = names
    roots = list(folders)
    for root in roots[1:]:
        differ = sorted(set(folders[roots[0]]) ^ set(folders[root]))
        if differ:
            raise UserError(
                f'{roots[0]} and {root} have different class folders, {differ[:5]}: classes are numbered by their '
                'folders, so both need all of them, even if some are empty'
            )


def _name_folders(dataset: dict, folders: Sequence[str], split: str, root: str) -> None:
    """Sort the class names of the config in the order of their folders.

    Raises:
        ValueError: If class names and folders do not match.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None or isinstance(classes, str):
        return
    if sorted(classes) == list(folders):
        if list(classes) != list(folders):
            print_log(f'{split}: classes are numbered in the order of their folders: {", ".join(folders)}', 'current')
        dataset['metainfo']['classes'] = tuple(folders)
        return
    if set(classes) & set(folders) or len(classes) != len(folders):
        lacking = [name for name in classes if name not in folders]
        raise UserError(
            f'{split}_dataloader.dataset.metainfo.classes={tuple(classes)}: {root} has the folders '
            f'{list(folders)}, but none for {lacking}. Name the classes like their folders'
        )
    print_log(
        f'{split}: names of the class folders: '
        + ', '.join(f'{folder} is {name}' for folder, name in zip(folders, classes)),
        'current',
    )


def _check_segmentor(cfg: Config, splits: Sequence[str]) -> None:
    """Raise ``ValueError`` for settings of a segmentor that fail only later, or silently learn nothing."""
    head = cfg.model.get('decode_head') or {}
    heads = head if isinstance(head, (list, tuple)) else [head]
    for one in heads:
        loss = one.get('loss_decode') or {}
        sigmoid = any(part.get('use_sigmoid') for part in (loss if isinstance(loss, (list, tuple)) else [loss]))
        if one.get('num_classes') == 1 and not sigmoid and one.get('type') in SOFTMAX_HEADS:
            raise UserError(
                'model.decode_head.num_classes=1: the only class is always correct, so nothing is learnt. '
                "Add the background, such as metainfo.classes=('background', 'crack') with labels 0 and 1, "
                'and set num_classes=2 in decode_head and auxiliary_head'
            )
    loader, norm = cfg.get('train_dataloader') or {}, (heads[0].get('norm_cfg') or {}).get('type', '')
    pools = 1 in (heads[0].get('pool_scales') or (1,)) and heads[0].get('type') in ('UPerHead', 'PSPHead')
    one_process = cfg.get('launcher', 'none') == 'none' or not torch.cuda.is_available()
    alone = norm == 'BN' or norm == 'SyncBN' and one_process
    if 'train' in splits and loader.get('batch_size') == 1 and pools and alone:
        raise UserError(
            f'train_dataloader.batch_size=1: {heads[0].type} pools each image to one value per channel, '
            'which batch normalisation cannot normalise for a single image. Use batch_size=2, or group '
            'normalisation: --cfg-options model.decode_head.norm_cfg.type=GN '
            'model.decode_head.norm_cfg.num_groups=32'
        )


def model_class_counts(model: dict) -> set:
    """Return the set of ``num_classes`` of all heads that predict the data set's classes."""
    if isinstance(model, (list, tuple)):
        return set().union(*(model_class_counts(item) for item in model))
    if not isinstance(model, dict):
        return set()
    counts = {model['num_classes']} if isinstance(model.get('num_classes'), int) else set()
    names = [key for key in model if key not in ('rpn_head', 'data_preprocessor', 'backbone')]
    return counts.union(*(model_class_counts(model[name]) for name in names))


def dataset_classes(dataset: dict, scope: str) -> tuple[str, ...]:
    """Return the class names of a data set, from its ``metainfo`` or else its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}')
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return (classes,) if isinstance(classes, str) else tuple(classes or ())


def check_class_count(cfg: Config, dataset: dict, split: str, read_files: bool = True) -> None:
    """Compare the heads' ``num_classes``, the data set's class names and, if files are read, a COCO annotation file.

    Raises:
        ValueError: If they differ; the message has both numbers, or the classes missing in the annotation file.
    """
    counts, classes = model_class_counts(cfg.model), dataset_classes(dataset, cfg.default_scope)
    annotated, source = _annotated_classes(cfg, dataset) if read_files else ([], '')
    if dataset.get('type') in ('CocoDataset', 'mmdet.CocoDataset'):
        _check_order(annotated, classes, source, split)
    lacking = [name for name in classes if name not in annotated]
    if annotated and lacking:
        raise UserError(
            f'metainfo.classes={classes} of {split}_dataloader: {source} has no {lacking}, its categories '
            f'are {annotated}. Set metainfo.classes to names from this list, and num_classes to their number'
        )
    if classes and counts and counts != {len(classes)}:
        raise UserError(
            f'num_classes={sorted(counts)} in the model, but {len(classes)} classes in metainfo.classes '
            f'({split}_dataloader). Set num_classes to the number of metainfo.classes'
        )


def _check_order(annotated: Sequence[str], classes: Sequence[str], source: str, split: str) -> None:
    """Raise ``ValueError`` if mmdet's ``CocoDataset``, which numbers categories by order, would mix up the classes."""
    used = [name for name in annotated if name in classes]
    if used != list(classes) and sorted(set(used)) == sorted(classes):
        raise UserError(
            f"{split}_dataloader.dataset.type='CocoDataset' numbers classes in the order of {source}, "
            f"{used}, but metainfo.classes is {list(classes)}: set type='CheckedCocoDataset', "
            "which matches names, and the evaluator's type='CheckedCocoMetric'"
        )


def _annotated_classes(cfg: Config, dataset: dict) -> tuple[list, str]:
    """Return the category names of a COCO annotation file, empty if there is no such file, and its path."""
    source = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if cfg.default_scope != 'mmdet' or not source.endswith('.json') or '://' in source:
        return [], source
    return [category['name'] for category in _read_categories(source)], source


def _read_categories(path: str) -> list:
    """Return the ``categories`` of a COCO file without parsing the rest, which is 450 MB for COCO itself.

    Raises:
        ValueError: If the file is empty.
    """
    if not os.path.getsize(path):
        raise UserError(f'the annotation file {path} is empty: expected COCO JSON')
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.rfind(b'"categories"')
        start = content.find(b'[', place) if place >= 0 else -1
        text = _decode_start(content[start : start + 2**20]) if start > 0 else ''
    try:
        return json.JSONDecoder().raw_decode(text)[0] if text else []
    except ValueError:
        return []


def _decode_start(content: bytes) -> str:
    """Decode the start of a text, which may end inside a character, with the encodings of ``datasets.coco``."""
    try:
        return codecs.getincrementaldecoder('utf-8')().decode(content)
    except UnicodeDecodeError:
        return content.decode('cp1252', errors='replace')
