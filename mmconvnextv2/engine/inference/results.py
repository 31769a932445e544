"""What models predict, as plain numpy arrays."""

from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """Objects in one image, the surest first.

    Attributes:
        boxes (np.ndarray): float32 (N, 4): left, top, right and bottom in pixels of the image.
        scores (np.ndarray): float32 (N, ), 0 to 1.
        labels (np.ndarray): int64 (N, ), indices into the model's ``classes``.
        masks (np.ndarray, optional): bool (N, H, W); None for models that predict boxes only.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


class Segmentation(NamedTuple):
    """The class of every pixel of one image.

    Attributes:
        labels (np.ndarray): int64 (H, W), indices into the model's ``classes``.
    """

    labels: np.ndarray


class Classification(NamedTuple):
    """The class of one image.

    Attributes:
        label (int): Index of the likeliest class in the model's ``classes``.
        scores (np.ndarray): float32 (C, ), probabilities of all classes.
    """

    label: int
    scores: np.ndarray
