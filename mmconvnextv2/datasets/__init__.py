"""The embedded data set: procedural pictures in the layouts of COCO, ADE20K and plain unlabelled folders."""
from .embedded import GROUNDS, OBJECTS, EmbeddedSpec, draw_scene, make_embedded

__all__ = ['EmbeddedSpec', 'GROUNDS', 'OBJECTS', 'draw_scene', 'make_embedded']
