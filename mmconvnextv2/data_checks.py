"""Checks of a config's data before a long start: paths, class names and class counts."""
import json
import mmap
import os
from typing import Iterator, Sequence, Tuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from .errors import UserError


def inner_datasets(dataset: dict) -> Iterator[dict]:
    """Walk through wrappers such as RepeatDataset and ConcatDataset down to the datasets that read files."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is None:
        yield dataset
        return
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from inner_datasets(child)


def _dataset_paths(dataset: dict) -> Iterator[Tuple[str, str]]:
    """Yield (config key, path) for the root, the annotation file and the folders of a dataset."""
    root = dataset.get('data_root') or ''
    if root:
        yield 'data_root', root
    if dataset.get('ann_file'):
        yield 'ann_file', os.path.join(root, dataset['ann_file'])
    prefix = dataset.get('data_prefix') or {}
    for key, folder in (prefix.items() if isinstance(prefix, dict) else [('', prefix)]):
        if isinstance(folder, str):
            yield f'data_prefix.{key}'.rstrip('.'), os.path.join(root, folder)


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the data of the given splits is there and agrees with the model's classes.

    Raises:
        ValueError: Naming the config key and the path that is missing, or both class counts.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        for dataset in inner_datasets(loader.get('dataset') or {}):
            for key, path in _dataset_paths(dataset):
                if '://' not in path and not os.path.exists(path):
                    raise UserError(f'{split}_dataloader.dataset.{key}: {path!r} does not exist. Lay the data out as '
                                    'configs/README.md says, or set the key with --cfg-options.')
            check_class_count(cfg, dataset, split)


def model_class_counts(model: dict) -> set:
    """Collect every ``num_classes`` of the heads that see the data set's classes."""
    if isinstance(model, (list, tuple)):
        return set().union(*(model_class_counts(item) for item in model))
    if not isinstance(model, dict):
        return set()
    counts = {model['num_classes']} if isinstance(model.get('num_classes'), int) else set()
    names = [key for key in model if key not in ('rpn_head', 'data_preprocessor', 'backbone')]
    return counts.union(*(model_class_counts(model[name]) for name in names))


def dataset_classes(dataset: dict, scope: str) -> Tuple[str, ...]:
    """Return the class names of a data set: those of its ``metainfo``, or else of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        kind = dataset.get('type')
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}')
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return (classes, ) if isinstance(classes, str) else tuple(classes or ())


def check_class_count(cfg: Config, dataset: dict, split: str) -> None:
    """Compare the heads' ``num_classes``, the data set's class names and a COCO-style annotation file.

    Raises:
        ValueError: Naming both numbers, or the classes that the annotation file lacks.
    """
    counts, classes = model_class_counts(cfg.model), dataset_classes(dataset, cfg.default_scope)
    annotated, source = _annotated_classes(cfg, dataset)
    lacking = [name for name in classes if name not in annotated]
    if annotated and lacking:
        raise UserError(f'metainfo.classes={classes} of {split}_dataloader: {source} has no {lacking}, its categories '
                        f'are {annotated}. Set metainfo.classes to names among them, and num_classes to their count.')
    if classes and counts and counts != {len(classes)}:
        raise UserError(f'num_classes={sorted(counts)} in the model, but {len(classes)} classes in metainfo.classes '
                        f'({split}_dataloader). Set num_classes and metainfo.classes to the same classes.')


def _annotated_classes(cfg: Config, dataset: dict) -> Tuple[list, str]:
    """Return the category names of a COCO-style annotation file, none where there is no such file, and its path."""
    source = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if cfg.default_scope != 'mmdet' or not source.endswith('.json') or '://' in source:
        return [], source
    return [category['name'] for category in _read_categories(source)], source


def _read_categories(path: str) -> list:
    """Return a COCO-style file's ``categories`` without parsing the rest, which in COCO's own is 450 MB.

    Raises:
        ValueError: If the file is empty.
    """
    if not os.path.getsize(path):
        raise UserError(f'the annotation file {path} is empty; expected COCO\'s JSON.')
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b'[', content.rfind(b'"categories"'))
        text = content[start:start + 2**20].decode(errors='ignore')
    try:
        return json.JSONDecoder().raw_decode(text)[0] if start > 0 else []
    except ValueError:
        return []
