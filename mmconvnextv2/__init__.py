"""Dense prediction with ConvNeXt V2 on OpenMMLab.

Importing the package registers the backbone with mmengine, and torchvision's operators with mmcv if mmcv has no
compiled ones. It only requires torch and mmengine.
"""

import warnings
from importlib import import_module
from typing import Any

warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # which mmengine and mmcv import

# isort: off
from .version import __version__
from .utils.compat import check_versions

check_versions()

from .mmcv_operators import register

register()  # before anything imports mmcv.ops

# isort: on
from .checkpoint import ConvNeXtV2Pretrained, create_backbone
from .engine import BF16OptimWrapper, FP16OptimWrapper, LayerDecayOptimWrapperConstructor
from .engine.hooks import (
    BestScoreStoppingHook,
    CompileBackboneHook,
    FiniteLossHook,
    PreemptionHook,
    VerifiedCheckpointHook,
)
from .models import ARCHS, GRN, ConvNeXtV2, ConvNeXtV2Block
from .utils.config import read_config, register_names
from .utils.moved import moved_names, register_moved

_moved = moved_names(__name__)


def __getattr__(name: str) -> Any:
    """Import what needs more than torch and mmengine when it is used."""
    if name in ('Model', 'load'):
        return getattr(import_module('.inference', __name__), name)
    return _moved(name)


register_moved()
register_names()

__all__ = [
    'ARCHS',
    'BF16OptimWrapper',
    'BestScoreStoppingHook',
    'CompileBackboneHook',
    'ConvNeXtV2',
    'ConvNeXtV2Block',
    'ConvNeXtV2Pretrained',
    'create_backbone',
    'load',
    'FP16OptimWrapper',
    'FiniteLossHook',
    'GRN',
    'PreemptionHook',
    'VerifiedCheckpointHook',
    '__version__',
    'read_config',
]
