"""Every layout of ConvNeXt V2 weights: their tables, the conversions, and the strict loader of pretrained backbones.

The only place that knows foreign names. It takes and gives dicts and does not know the model's class.
"""
from .content import unwrap
from .conversion import (classifier_from_canonical, classifier_to_canonical, detect_dialect, from_canonical,
                         pretraining_from_canonical, pretraining_to_canonical, read_arch, read_backbone, to_canonical)
from .initializer import LICENCE, ConvNeXtV2Pretrained, load_backbone, skip_initial_weights_on_resume
from .layouts import DIALECTS
from .matching import MatchingWeightsHook, check_weights

__all__ = [
    'DIALECTS', 'LICENCE', 'ConvNeXtV2Pretrained', 'MatchingWeightsHook', 'check_weights',
    'classifier_from_canonical', 'classifier_to_canonical', 'detect_dialect', 'from_canonical', 'load_backbone',
    'pretraining_from_canonical', 'pretraining_to_canonical', 'read_arch', 'read_backbone',
    'skip_initial_weights_on_resume', 'to_canonical', 'unwrap',
]
