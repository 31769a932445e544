"""Dense prediction with ConvNeXt V2 on OpenMMLab.

Importing the package registers the backbone with mmengine, and torchvision's operators with mmcv if mmcv has no
compiled ones. It only requires torch and mmengine.
"""

# Each call must come before the imports after it
# fmt: off
from .version import __version__
from .utils.compat import check_versions, silence_pkg_resources

silence_pkg_resources()
check_versions()

from .mmcv_operators import register

register()  # before anything imports mmcv.ops

from .checkpoint import ConvNeXtV2Pretrained, create_backbone
from .engine import BF16OptimWrapper, FP16OptimWrapper, LayerDecayOptimWrapperConstructor
from .engine.hooks import BestScoreStoppingHook, CompileBackboneHook, FiniteLossHook, PreemptionHook
from .engine.hooks import VerifiedCheckpointHook
from .models import ARCHS, GRN, ConvNeXtV2, ConvNeXtV2Block
from .utils.config import read_config, register_names
from .utils.moved import moved_names, register_moved

# load and its results need more than torch and mmengine: they are imported when they are used
LAZY = {'engine.inference': ('Model', 'load'), 'utils.public_models': ('get_model', 'list_models')}
__getattr__ = moved_names(__name__, lazy={name: home for home, names in LAZY.items() for name in names})
register_moved()
register_names()

__all__ = [
    'ARCHS', 'BF16OptimWrapper', 'BestScoreStoppingHook', 'CompileBackboneHook', 'ConvNeXtV2', 'ConvNeXtV2Block',
    'ConvNeXtV2Pretrained', 'create_backbone', 'get_model', 'list_models', 'load', 'FP16OptimWrapper',
    'FiniteLossHook', 'GRN', 'PreemptionHook', 'VerifiedCheckpointHook', '__version__', 'read_config'
]
