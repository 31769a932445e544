"""Configs of leaves, read once per process: mmengine takes about a second for a leaf with its bases."""

import pickle
from functools import cache

from mmengine.config import Config


@cache
def _pickled(path):
    return pickle.dumps(Config.fromfile(path))


def read_leaf(path):
    """Return a copy of a config, as ``Config.fromfile`` reads it, that the caller may change."""
    return pickle.loads(_pickled(str(path)))
