"""mmcv's operators (RoIAlign, NMS, deformable convolution and attention, focal loss) from torchvision's wheels.

mmcv implements them in C++ and CUDA, which its users have to compile. ``mmcv-lite`` is a pure Python wheel that calls
them but does not contain them; :func:`register` makes :mod:`~mmconvnextv2.mmcv_operators.extension` importable as the
missing module. Compiled operators are used if they are installed.
"""

from importlib import import_module

from .finder import register

__all__ = ['register', 'serving_operators']


def serving_operators() -> str:
    """Return a description of the operators that ``mmcv.ops`` uses.

    Returns:
        str: ``'compiled, CPU'``, or for example ``'compiled, CPU and CUDA 13.0'`` or ``'torchvision 0.26.0'``.

    Raises:
        ImportError: If mmcv's compiled module is installed but broken, or if neither implementation is available.
    """
    extension = import_module('mmcv._ext')
    if extension.get_compiler_version() == 'torchvision':
        return f'torchvision {import_module("torchvision").__version__}'
    cuda = extension.get_compiling_cuda_version()
    return 'compiled, CPU' if cuda == 'not available' else f'compiled, CPU and CUDA {cuda}'
