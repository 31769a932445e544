"""Checkpoint files and the layouts of ConvNeXt weights: tables, conversions, and strict loading of backbones.

The tables of foreign names are in :mod:`.layouts`. Conversions take and return dicts.
"""

from ..utils.moved import moved_names
from .continued import FCMAEPretrained
from .conversion import (
    classifier_from_canonical,
    classifier_to_canonical,
    detect_layout,
    from_canonical,
    pretraining_from_canonical,
    pretraining_to_canonical,
    read_arch,
    read_backbone,
    to_canonical,
)
from .layouts import LAYOUTS
from .pretrained import ConvNeXtV2Pretrained, create_backbone, load_backbone
from .provenance import DISTRIBUTIONS, LICENCE, find_distribution
from .state_dict import extract_state_dict
from .strict import check_weights

__getattr__ = moved_names(__name__)
__all__ = [
    'DISTRIBUTIONS',
    'LAYOUTS',
    'LICENCE',
    'ConvNeXtV2Pretrained',
    'FCMAEPretrained',
    'check_weights',
    'create_backbone',
    'classifier_from_canonical',
    'classifier_to_canonical',
    'detect_layout',
    'find_distribution',
    'from_canonical',
    'load_backbone',
    'pretraining_from_canonical',
    'pretraining_to_canonical',
    'read_arch',
    'read_backbone',
    'to_canonical',
    'extract_state_dict',
]
