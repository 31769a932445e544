"""The common form of exported labels: shapes in pixels, by image."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

CIRCLE = 32  # corners of the polygon that replaces a circle or an ellipse


class Shape(NamedTuple):
    """One object.

    Attributes:
        name (str): Class name.
        polygons (list[list[float]]): Outline as x, y, x, y ... in pixels; several for an object in several parts.
        is_box (bool): Whether the tool gave a box only, so that the outline is its rectangle.
        rle (dict, optional): COCO's run lengths instead of polygons.
        crowd (bool): Whether it stands for a group of objects, which is ignored in training.
    """

    name: str
    polygons: list[list[float]]
    is_box: bool = False
    rle: dict[str, Any] | None = None
    crowd: bool = False


@dataclass
class LabelledImage:
    """One image of an export.

    Attributes:
        file (str): Name or path as the export gives it.
        shapes (list[Shape]): Its objects; empty for an image without objects.
        split (str, optional): ``'train'`` or ``'val'`` where the export says so.
    """

    file: str
    shapes: list[Shape] = field(default_factory=list)
    split: str | None = None


@dataclass
class Labels:
    """A whole export.

    Attributes:
        images (list[LabelledImage]): Images in the export's order.
        classes (list[str]): Class names in the export's order.
        tool (str): What wrote the export, for messages.
        notes (list[str]): What was repaired or left out.
    """

    images: list[LabelledImage]
    classes: list[str]
    tool: str
    notes: list[str] = field(default_factory=list)


def box(left: float, top: float, width: float, height: float) -> list[float]:
    """Return the outline of a box in pixels."""
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[float]:
    """Return the outline of an ellipse in pixels."""
    angles = np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1).flatten().tolist()
