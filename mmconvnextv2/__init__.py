"""Dense prediction with ConvNeXt V2 on OpenMMLab.

Importing the package registers the backbone with mmengine, and torchvision's operators with mmcv where mmcv has no
compiled ones. It needs torch and mmengine only.
"""
from .version import __version__  # isort: skip
from .versions import check_versions  # isort: skip

check_versions()

from .mmcv_operators import register  # noqa: E402  # isort: skip

register()  # before anything imports mmcv.ops

from .backbone import ARCHS, ConvNeXtV2, ConvNeXtV2Block  # noqa: E402
from .checkpoint import ConvNeXtV2Pretrained  # noqa: E402
from .faults import FiniteLossHook, PreemptionHook  # noqa: E402
from .optim_wrapper import BF16OptimWrapper, FP16OptimWrapper  # noqa: E402
from .recipes import read_config, register_names  # noqa: E402
from .response_norms import GRN  # noqa: E402
from .safe_saving import VerifiedCheckpointHook  # noqa: E402
from .train_options import BestScoreStoppingHook, CompileBackboneHook  # noqa: E402

register_names()

__all__ = [
    'ARCHS', 'BF16OptimWrapper', 'BestScoreStoppingHook', 'CompileBackboneHook', 'ConvNeXtV2', 'ConvNeXtV2Block',
    'ConvNeXtV2Pretrained', 'FP16OptimWrapper', 'FiniteLossHook', 'GRN', 'PreemptionHook', 'VerifiedCheckpointHook',
    '__version__', 'read_config'
]
