"""Embedded data set: procedural images in the layouts of COCO, ADE20K and plain folders without labels."""

from ..utils.moved import moved_names
from .synthetic.scenes import GROUNDS, OBJECTS, Scene, render_scene
from .synthetic.writer import EmbeddedSpec, make_embedded

__getattr__ = moved_names(__name__)
__all__ = ['EmbeddedSpec', 'GROUNDS', 'OBJECTS', 'Scene', 'render_scene', 'make_embedded']


__getattr__ = moved_names(__name__)
