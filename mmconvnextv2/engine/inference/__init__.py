"""The public API for programs: models that predict from arrays and files, without a runner and without a log line."""

from .large_images import predict_raster
from .model import Model, load
from .results import Classification, Detections, Segmentation

__all__ = ['Classification', 'Detections', 'Model', 'Segmentation', 'load', 'predict_raster']
