"""mmcv's operators (RoIAlign, NMS, deformable convolution and attention, focal loss) from torchvision's wheels.

mmcv's own are C++ and CUDA that its users compile. ``mmcv-lite`` is a pure wheel with the Python half, whose calls
:mod:`~mmconvnextv2.mmcv_operators.extension` serves; :func:`register` puts it in the place of the missing module.
Compiled operators are taken where they are.
"""
from .finder import register

__all__ = ['register']
