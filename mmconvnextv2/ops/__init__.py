"""Operations of the backbone's blocks: ``depthwise``, ``response_mlp`` and ``add_branch``.

``dispatch`` chooses implementations.
"""

from . import self_check as _self_check  # sets the comparison of kernels with layers
from .depthwise import depthwise
from .dispatch import KERNELS, plain
from .residual import add_branch
from .response_mlp import response_mlp

__all__ = ['KERNELS', 'add_branch', 'depthwise', 'plain', 'response_mlp']
