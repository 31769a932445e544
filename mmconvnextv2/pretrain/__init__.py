"""FCMAE pretraining, an mmpretrain self-supervised algorithm. Importing it needs mmpretrain."""

from ..engine.fsdp2 import FSDP2Strategy
from ..engine.layer_decay import LayerDecayOptimWrapperConstructor
from .ablation_decoders import FCMAETransformerDecoder, FCMAEUNetDecoder
from .dataset import UnlabelledImages
from .decoder import FCMAEDecoder, FCMAEHead
from .fcmae import FCMAE
from .loop import ResumableTrainLoop
from .masking import DrawVisibleCells
from .multichannel import FCMAEDataPreprocessor, LoadPicture
from .probe import ProbeHook
from .reconstruction import ReconstructionHook
from .sampler import DrawSampler

__all__ = [
    'DrawSampler',
    'DrawVisibleCells',
    'FCMAE',
    'FCMAEDataPreprocessor',
    'FCMAEDecoder',
    'FCMAEHead',
    'FCMAETransformerDecoder',
    'FCMAEUNetDecoder',
    'FSDP2Strategy',
    'LayerDecayOptimWrapperConstructor',
    'LoadPicture',
    'ProbeHook',
    'ReconstructionHook',
    'ResumableTrainLoop',
    'UnlabelledImages',
]
