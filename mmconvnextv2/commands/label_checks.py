"""Check of the first labels of a segmentation data set before training: which classes occur, and which do not."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from ..engine.pipelines import name_files
from ..utils.config import inner_datasets, reads_annotations
from ..utils.errors import UserError

MOST = 20  # images per data set
IGNORED = 255


def check_labels(cfg: Config, splits: Sequence[str]) -> None:
    """Read the first labels of each split as training and evaluation do, and log the share of pixels of each class.

    Raises:
        ValueError: If a label file is invalid, or the labels contain fewer than two classes apart from ignored pixels.
    """
    for split in splits:
        counts: Counter = Counter()
        classes, num_read = (), 0
        for dataset in inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}):
            labels = count_labels(dataset)
            if labels is not None:
                counts.update(labels['counts'])
                classes, num_read = labels['classes'], num_read + labels['num_read']
        if counts:
            _judge(split, counts, classes, num_read)


def count_labels(dataset: dict) -> dict | None:
    """Count labels in up to ``MOST`` images of a data set, as its pipeline reads them, before any augmentation.

    Returns:
        dict: ``counts``, the number of pixels of each label; ``classes``, their names; ``num_read``, the number of
        images. None if the pipeline does not read labels.
    """
    steps = first_steps(dataset.get('pipeline') or [])
    if steps is None:
        return None
    with DefaultScope.overwrite_default_scope('mmseg'):
        data = DATASETS.build({**deepcopy(dataset), 'pipeline': steps, 'lazy_init': False, 'indices': None})
        name_files(data)
    counts: Counter = Counter()
    num_read = min(MOST, len(data))
    for index in range(num_read):
        results = data.prepare_data(index * (len(data) // num_read))
        values, pixels = np.unique(results['gt_seg_map'], return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist())))
    return dict(counts=counts, classes=data.metainfo.get('classes') or (), num_read=num_read)


def first_steps(pipeline: list[dict]) -> list[dict] | None:
    """Return the steps that load an image and its labels; None unless the second or third step reads the labels."""
    for number, step in enumerate(pipeline[:3]):
        if reads_annotations(step):
            return [pipeline[0], step] if number else None
    return None


def _judge(split: str, counts: Counter, classes: Sequence[str], num_read: int) -> None:
    total = sum(counts.values())
    found = [label for label in sorted(counts) if label != IGNORED]
    names = {label: classes[label] if label < len(classes) else f'label {label}' for label in found}
    if len(classes) > 1 and len(found) < 2:
        raise UserError(
            f'{split}: the first {num_read} label files contain only {", ".join(names.values()) or "ignored pixels"}, '
            f'and {counts[IGNORED] / total:.0%} of pixels are {IGNORED}, which is ignored: nothing can be learnt or '
            f'evaluated. Save masks of 0 and 255 as 0 and 1; see also reduce_zero_label'
        )
    shares = ', '.join(f'{names[label]} {counts[label] / total:.1%}' for label in found[:12])
    lacking = [name for label, name in enumerate(classes) if label not in counts]
    missing = f'; {len(lacking)} classes do not occur in them, such as {lacking[0]}' if lacking else ''
    print_log(
        f'{split}: labels of {num_read} images: {shares}{", ..." if len(found) > 12 else ""}, ignored '
        f'{counts[IGNORED] / total:.1%}{missing}',
        'current',
    )
