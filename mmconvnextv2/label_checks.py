"""A look at the first labels of a segmentation data set before training: what they hold, and what they lack."""
from collections import Counter
from copy import deepcopy
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from .errors import UserError

MOST = 20  # pictures a split
LOADERS = ('LoadAnnotations', 'LoadCheckedLabels')
IGNORED = 255


def check_labels(cfg: Config, splits: Sequence[str]) -> None:
    """Read the first labels of each split as training and evaluation will; say what share of pixels each class has.

    Raises:
        ValueError: If a label file is unsound, or the labels hold a single class beside what is ignored.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        labels = count_labels(dataset) if dataset else None
        if labels is None or not labels['counts']:
            continue
        _judge(split, labels['counts'], labels['classes'], labels['num_read'])


def count_labels(dataset: dict) -> Optional[Dict]:
    """Count the labels of the first pictures of a data set, as its pipeline reads them, before any augmentation.

    Returns:
        dict: ``counts``, pixels by label; ``classes``; ``num_read``, pictures. None where the pipeline reads none.
    """
    steps = first_steps(dataset.get('pipeline') or [])
    if steps is None:
        return None
    with DefaultScope.overwrite_default_scope('mmseg'):
        data = DATASETS.build({**deepcopy(dataset), 'pipeline': steps, 'lazy_init': False, 'indices': None})
    counts: Counter = Counter()
    num_read = min(MOST, len(data))
    for index in range(num_read):
        results = data.prepare_data(index * (len(data) // num_read))
        values, pixels = np.unique(results['gt_seg_map'], return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist())))
    return dict(counts=counts, classes=data.metainfo.get('classes') or (), num_read=num_read)


def first_steps(pipeline: List[dict]) -> Optional[List[dict]]:
    """Return the steps that load picture and labels, None without labels or with more in between."""
    for number, step in enumerate(pipeline[:3]):
        if step.get('type') in LOADERS:
            return [pipeline[0], step] if number else None
    return None


def _judge(split: str, counts: Counter, classes: Sequence[str], num_read: int) -> None:
    total = sum(counts.values())
    found = [label for label in sorted(counts) if label != IGNORED]
    names = {label: classes[label] if label < len(classes) else f'label {label}' for label in found}
    if len(classes) > 1 and len(found) < 2:
        raise UserError(
            f'{split}: the first {num_read} label files hold {", ".join(names.values()) or "no class"} alone, and '
            f'{counts[IGNORED] / total:.0%} of pixels are {IGNORED}, which is ignored: nothing can be learnt or '
            f'evaluated. Masks of 0 and 255 have to be saved as 0 and 1; see also reduce_zero_label')
    shares = ', '.join(f'{names[label]} {counts[label] / total:.1%}' for label in found[:12])
    lacking = [name for label, name in enumerate(classes) if label not in counts]
    told = f'; {len(lacking)} classes do not occur in them, such as {lacking[0]}' if lacking else ''
    print_log(f'{split}: labels of {num_read} pictures: {shares}{", ..." if len(found) > 12 else ""}, ignored '
              f'{counts[IGNORED] / total:.1%}{told}', 'current')
