"""FCMAE pretraining, an mmpretrain self-supervised algorithm. Importing it needs mmpretrain."""
from ..layer_decay import LayerDecayOptimWrapperConstructor
from ..strategy import FSDP2Strategy
from .ablation_decoders import FCMAETransformerDecoder, FCMAEUNetDecoder
from .channels import FCMAEDataPreprocessor, LoadPicture
from .data import DrawSampler, UnlabelledImages
from .decoder import FCMAEDecoder, FCMAEHead
from .fcmae import FCMAE
from .hooks import ReconstructionHook
from .masking import DrawVisibleCells
from .probe import ProbeHook
from .resume import ResumableTrainLoop

__all__ = [
    'DrawSampler', 'DrawVisibleCells', 'FCMAE', 'FCMAEDataPreprocessor', 'FCMAEDecoder', 'FCMAEHead',
    'FCMAETransformerDecoder', 'FCMAEUNetDecoder', 'FSDP2Strategy', 'LayerDecayOptimWrapperConstructor',
    'LoadPicture', 'ProbeHook', 'ReconstructionHook', 'ResumableTrainLoop', 'UnlabelledImages'
]
