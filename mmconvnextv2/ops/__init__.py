"""Operations of the backbone's blocks, ``depthwise`` and ``response_mlp``; ``dispatch`` chooses implementations."""

from . import self_check as _self_check  # sets the comparison of kernels with layers
from .depthwise import depthwise
from .dispatch import KERNELS, plain
from .response_mlp import response_mlp

__all__ = ['KERNELS', 'depthwise', 'plain', 'response_mlp']
