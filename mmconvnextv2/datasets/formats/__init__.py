"""What labelling tools export, read into one form: images with polygons, or images with label maps."""

from .labels import LabelledImage, Labels, Shape
from .maps import LabelMaps, read_label_maps, read_label_png
from .reading import read_labels

__all__ = ['LabelMaps', 'LabelledImage', 'Labels', 'Shape', 'read_label_maps', 'read_labels']
