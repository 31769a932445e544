"""The ConvNeXt V2 backbone, its response norms, and the executions that run its forward."""

from .convnext_v2 import ARCHS, ConvNeXtV2, ConvNeXtV2Block
from .response_norms import GRN

__all__ = ['ARCHS', 'GRN', 'ConvNeXtV2', 'ConvNeXtV2Block']
