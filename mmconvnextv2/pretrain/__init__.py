"""FCMAE pretraining as a self-supervised algorithm of mmpretrain, which this package requires."""

from ..engine.fsdp2 import FSDP2Strategy
from ..engine.layer_decay import LayerDecayOptimWrapperConstructor
from ..utils.moved import moved_names
from .ablation_decoders import FCMAETransformerDecoder, FCMAEUNetDecoder
from .dataset import UnlabelledImages
from .decoder import FCMAEDecoder, FCMAEHead
from .dense_probe import DenseProbeHook
from .fcmae import FCMAE
from .loading import FastRandomFlip, FastRandomResizedCrop, LoadImageForCrop, LoadPackedImage
from .loop import ResumableTrainLoop
from .masking import FCMAEMaskGenerator, LoadRegions, RandomResizedCropWithRegions
from .mpmae import MPMAE, MultiTargetHead
from .multichannel import FCMAEDataPreprocessor, LoadMultiChannelImage
from .named_arrays import LoadNamedArrays, NamedArrays, PackNamedArrays, SplitNamedArrays
from .probe import ProbeHook
from .reconstruction import ReconstructionHook
from .sampler import DeterministicSampler

__getattr__ = moved_names(__name__)

__all__ = [
    'DenseProbeHook',
    'DeterministicSampler',
    'FCMAEMaskGenerator',
    'FCMAE',
    'FCMAEDataPreprocessor',
    'FCMAEDecoder',
    'FCMAEHead',
    'FCMAETransformerDecoder',
    'FCMAEUNetDecoder',
    'FSDP2Strategy',
    'FastRandomFlip',
    'FastRandomResizedCrop',
    'LayerDecayOptimWrapperConstructor',
    'LoadImageForCrop',
    'LoadMultiChannelImage',
    'LoadNamedArrays',
    'LoadPackedImage',
    'LoadRegions',
    'MPMAE',
    'MultiTargetHead',
    'NamedArrays',
    'PackNamedArrays',
    'ProbeHook',
    'RandomResizedCropWithRegions',
    'ReconstructionHook',
    'ResumableTrainLoop',
    'SplitNamedArrays',
    'UnlabelledImages',
]
