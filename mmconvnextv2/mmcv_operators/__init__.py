"""mmcv's operators (RoIAlign, NMS, deformable convolution and attention, focal loss) from torchvision's wheels.

mmcv's own are C++ and CUDA that its users compile. ``mmcv-lite`` is a pure wheel with the Python half, whose calls
:mod:`~mmconvnextv2.mmcv_operators.extension` serves; :func:`register` puts it in the place of the missing module.
Compiled operators are taken where they are.
"""

from importlib import import_module

from .finder import register

__all__ = ['register', 'serving_operators']


def serving_operators() -> str:
    """Return which operators ``mmcv.ops`` uses: ``'compiled, CPU'``, ``'compiled, CPU and CUDA 13.0'`` or
    ``'torchvision 0.26.0'``.

    Raises:
        ImportError: If mmcv's compiled module is there and broken, or nothing serves.
    """
    extension = import_module('mmcv._ext')
    if extension.get_compiler_version() == 'torchvision':
        return f'torchvision {import_module("torchvision").__version__}'
    cuda = extension.get_compiling_cuda_version()
    return 'compiled, CPU' if cuda == 'not available' else f'compiled, CPU and CUDA {cuda}'
