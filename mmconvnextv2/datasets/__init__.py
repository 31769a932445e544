"""The embedded data set: procedural pictures in the layouts of COCO, ADE20K and plain unlabelled folders."""
from .embedded import EmbeddedSpec, make_embedded
from .scenes import GROUNDS, OBJECTS, Scene, draw_scene

__all__ = ['EmbeddedSpec', 'GROUNDS', 'OBJECTS', 'Scene', 'draw_scene', 'make_embedded']
