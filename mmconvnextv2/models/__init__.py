"""What is computed: the backbone of the paper, its norms, and the executions of a forward."""

from .convnext_v2 import ARCHS, ConvNeXtV2, ConvNeXtV2Block
from .response_norms import GRN

__all__ = ['ARCHS', 'GRN', 'ConvNeXtV2', 'ConvNeXtV2Block']
