"""Checkpoints of tensors and plain types only, which ``torch.load(weights_only=True)`` reads without an allow-list.

mmengine's checkpoints hold ``HistoryBuffer`` objects with the logged scalars, numpy arrays and its config types.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

PLAIN = (Tensor, str, bytes, bool, int, float, complex, type(None), torch.Size, torch.dtype, torch.device)
HISTORY = ('history', 'counts', 'max_length')  # keys of a HistoryBuffer as a dict


def to_plain(value: Any) -> Any:
    """Return a checkpoint's content, or a part of it, in tensors and plain types.

    numpy arrays become lists, numpy numbers Python's, other mappings dicts and a ``HistoryBuffer`` a dict of tensors
    with the keys of ``HISTORY``. What has no plain form is returned as it is.
    """
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return dict(history=torch.from_numpy(history), counts=torch.from_numpy(counts), max_length=value.max_length)
    if isinstance(value, PLAIN) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        kind: type[dict] = type(value) if isinstance(value, (Counter, OrderedDict)) else dict
        plain: Any = kind({to_plain(key): to_plain(each) for key, each in value.items()})
        if hasattr(value, '_metadata'):  # versions of modules in a state dict
            plain._metadata = value._metadata
        return plain
    if isinstance(value, (list, deque)):
        return [to_plain(each) for each in value]
    if isinstance(value, tuple):
        return tuple(to_plain(each) for each in value)
    return value


def restore_histories(scalars: dict[str, Any]) -> dict[str, Any]:
    """Return logged scalars with each ``HistoryBuffer`` made from what :func:`to_plain` wrote, in place."""
    for name, value in scalars.items():
        if isinstance(value, dict) and set(value) == set(HISTORY):
            scalars[name] = HistoryBuffer(value['history'].numpy(), value['counts'].numpy(), value['max_length'])
    return scalars
