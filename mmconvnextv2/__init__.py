"""Dense prediction with ConvNeXt V2 on OpenMMLab.

Importing the package registers the backbone with mmengine, and torchvision's operators with mmcv where mmcv has no
compiled ones. It needs torch and mmengine only.
"""
from .version import __version__  # isort: skip
from .utils.compat import check_versions  # isort: skip

check_versions()

from .mmcv_operators import register  # noqa: E402  # isort: skip

register()  # before anything imports mmcv.ops

from .checkpoint import ConvNeXtV2Pretrained  # noqa: E402
from .engine import BF16OptimWrapper, FP16OptimWrapper, LayerDecayOptimWrapperConstructor  # noqa: E402, F401
from .engine.hooks import VerifiedCheckpointHook  # noqa: E402
from .engine.hooks import BestScoreStoppingHook, CompileBackboneHook, FiniteLossHook, PreemptionHook  # noqa: E402
from .models import ARCHS, GRN, ConvNeXtV2, ConvNeXtV2Block  # noqa: E402
from .utils.config import read_config, register_names  # noqa: E402
from .utils.moved import moved_names, register_moved  # noqa: E402

__getattr__ = moved_names(__name__)
register_moved()
register_names()

__all__ = [
    'ARCHS', 'BF16OptimWrapper', 'BestScoreStoppingHook', 'CompileBackboneHook', 'ConvNeXtV2', 'ConvNeXtV2Block',
    'ConvNeXtV2Pretrained', 'FP16OptimWrapper', 'FiniteLossHook', 'GRN', 'PreemptionHook', 'VerifiedCheckpointHook',
    '__version__', 'read_config'
]
