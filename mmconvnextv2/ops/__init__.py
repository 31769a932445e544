"""Operations of the backbone's blocks: ``depthwise``, ``response_mlp`` and ``add_branch``, or ``whole_block``.

``dispatch`` chooses implementations.
"""

from . import self_check as _self_check  # sets the comparison of kernels with layers
from .block import whole_block
from .depthwise import depthwise
from .dispatch import KERNELS, fuse_block, plain
from .residual import add_branch
from .response_mlp import response_mlp

__all__ = ['KERNELS', 'add_branch', 'depthwise', 'fuse_block', 'plain', 'response_mlp', 'whole_block']
