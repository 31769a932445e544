"""How it is computed: two front doors, ``depthwise`` and ``response_mlp``; ``dispatch`` decides which code runs."""

from .depthwise import depthwise
from .dispatch import KERNELS, plain
from .response_mlp import response_mlp

__all__ = ['KERNELS', 'depthwise', 'plain', 'response_mlp']
