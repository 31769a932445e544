"""Extensions of mmengine's runs: hooks, optimizer wrappers, pipelines that name their files, FSDP2."""

from .fsdp2 import FSDP2Strategy
from .layer_decay import LayerDecayOptimWrapperConstructor
from .mixed_precision import BF16OptimWrapper, FP16OptimWrapper

__all__ = ['BF16OptimWrapper', 'FP16OptimWrapper', 'FSDP2Strategy', 'LayerDecayOptimWrapperConstructor']
