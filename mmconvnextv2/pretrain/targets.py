"""Targets of multi-pretext masked autoencoding, and their losses (MP-MAE of MMEarth, arXiv 2405.02771).

A target belongs to pixels or to the whole image, and holds values or classes. The losses are those of MMEarth's code:

- pixels, values: squared error of masked cells, averaged over the values of a cell, then over cells (as FCMAE's);
- pixels, classes: cross entropy, averaged over the pixels of masked cells;
- image, values: squared error, averaged over values; image, classes: cross entropy, averaged over images.

Each returns a sum and the number of its terms. A missing value is in neither, nor in the mean and deviation of its
cell. MMEarth's code, in contrast, sets missing pixel values to 0 before the loss. Suffixes: B images, M masked cells, P
pixels of a cell, C channels or classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.reductions import statistics_dtype
from ..utils.errors import UserError
from .decoder import normalise

MISSING = -1  # index of missing labels
INPUTS = 'inputs'  # the source of a target that reconstructs the images themselves


@dataclass(frozen=True)
class Target:
    """Base class: where a target comes from, and whether samples may lack it."""

    of_pixels: ClassVar[bool]
    has_classes: ClassVar[bool]

    @property
    def num_outputs(self) -> int:
        """Predicted values per pixel or image."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Channels of the array in a sample."""
        raise NotImplementedError

    def terms(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the errors and the number of terms, both scalars."""
        raise NotImplementedError

    def prepare(self, target: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Return the array of a sample as :meth:`terms` expects it."""
        return target


@dataclass(frozen=True)
class _Values(Target):
    channels: int = 1
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    no_data: float | None = None
    source: str | None = None
    optional: bool = False

    has_classes = False

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f'channels={self.channels}: expected 1 or more')
        if (self.mean is None) != (self.std is None):
            raise UserError(f'mean={self.mean} and std={self.std}: give both, or none')
        for name in ('mean', 'std'):
            given = getattr(self, name)
            if given is not None and len(given) not in (1, self.channels):
                raise UserError(f'{name} has {len(given)} values: expected one, or one for each of {self.channels}')
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f'std={self.std}: expected positive deviations')

    @property
    def num_outputs(self) -> int:
        return self.channels

    @property
    def depth(self) -> int:
        return self.channels

    def prepare(self, target: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Return values as floating point, NaN where they are missing, standardised by mean and deviation.

        Args:
            target (Tensor): Values of a sample, (..., C).
            mean (Tensor, optional): The target's ``mean``, as a tensor. Defaults to None.
            std (Tensor, optional): The target's ``std``, as a tensor. Defaults to None.
        """
        missing = ~target.isfinite() if self.no_data is None else ~target.isfinite() | (target == self.no_data)
        kind = statistics_dtype(target.dtype) if target.is_floating_point() else torch.float32
        target = torch.where(missing, torch.nan, target.to(kind))
        return target if mean is None or std is None else (target - mean) / std


@dataclass(frozen=True)
class PixelValues(_Values):
    """Continuous map, such as bands, elevation or radar.

    Args:
        channels (int): Number of channels. Defaults to 1.
        mean (Sequence[float], optional): Mean to subtract, one value or one per channel. Defaults to None.
        std (Sequence[float], optional): Deviation to divide by. Defaults to None.
        no_data (float, optional): Value that marks missing ones, besides NaN and infinity. Defaults to None.
        source (str, optional): ``'inputs'`` for the images themselves, as the preprocessor normalises them. Defaults
            to None, the array of the target's name.
        optional (bool): Whether samples may lack the array. Defaults to False.
        norm_cell (bool): Whether to normalise the target by mean and unbiased variance of its cell, all channels
            together, as FCMAE and MMEarth do for the images. Defaults to False.
    """

    norm_cell: bool = False

    of_pixels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in (None, INPUTS):
            raise UserError(f'source={self.source!r}: expected {INPUTS!r}, or None for the array of its own name')

    def normalised(self, target: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets (B, M, P, C), zero where missing, and mean and deviation of each cell, (B, M, 1, 1)."""
        target = torch.where(missing, 0, target)
        if not self.norm_cell:
            mean = torch.zeros_like(target[..., :1, :1])
            return target, mean, torch.ones_like(mean)
        return normalise(target, ~missing, (2, 3))

    def terms(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over cells of their mean squared error, and the number of cells with a value.

        Args:
            predicted (Tensor): Predictions for masked cells, (B, M, P, C).
            target (Tensor): Values of the same shape, NaN where missing.
        """
        missing = target.isnan()
        target = self.normalised(target, missing)[0]
        # Selected, not multiplied, so that a missing value gives a gradient of exactly zero
        squared = torch.where(missing, 0, predicted.to(target.dtype) - target).square().sum((2, 3))  # (B, M)
        count = (~missing).sum((2, 3))
        return (squared / count.clamp(min=1)).sum(), (count > 0).sum()


@dataclass(frozen=True)
class ImageValues(_Values):
    """Vector of values of the whole image, such as its climate or position.

    Args:
        channels (int): Number of values. Defaults to 1.
        mean (Sequence[float], optional): Mean to subtract, one value or one per channel. Defaults to None.
        std (Sequence[float], optional): Deviation to divide by. Defaults to None.
        no_data (float, optional): Value that marks missing ones, besides NaN and infinity. Defaults to None.
        optional (bool): Whether samples may lack the array. Defaults to False.
    """

    of_pixels = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None:
            raise UserError(f'source={self.source!r}: only PixelValues have one')

    def terms(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of squared errors of (B, C), and the number of values; NaN marks missing ones."""
        missing = target.isnan()
        error = torch.where(missing, 0, predicted.to(target.dtype) - torch.where(missing, 0, target))
        return error.square().sum(), (~missing).sum()


@dataclass(frozen=True)
class _Classes(Target):
    num_classes: int = 0
    ignore_index: int = -1
    labels: Sequence[int] | None = None
    optional: bool = False

    has_classes = True
    source: ClassVar[None] = None
    depth: ClassVar[int] = 1  # type: ignore[misc]  # a constant here, and a property of the base class

    def __post_init__(self) -> None:
        if self.labels is not None and self.num_classes in (0, len(self.labels)):
            object.__setattr__(self, 'num_classes', len(self.labels))
        if self.num_classes < 2:
            raise UserError(f'num_classes={self.num_classes}: expected 2 or more, or labels, the value of each class')
        if self.labels is not None and len(set(self.labels)) != self.num_classes:
            raise UserError(f'labels={list(self.labels)}: expected {self.num_classes} different values')
        if self.labels is None and 0 <= self.ignore_index < self.num_classes:
            raise UserError(f'ignore_index={self.ignore_index} is one of {self.num_classes} classes: choose another')
        if self.labels is not None and self.ignore_index in self.labels:
            raise UserError(f'ignore_index={self.ignore_index} is one of labels={list(self.labels)}: choose another')

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    def prepare(self, target: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Return indices as long, -1 where the label is missing."""
        target = target.long()
        return target if self.labels is not None else torch.where(target == self.ignore_index, MISSING, target)

    def terms(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of cross entropies and the number of labels.

        Args:
            predicted (Tensor): Logits, (..., C).
            target (Tensor): Class indices, long, (...) or (..., 1), -1 where missing.

        Raises:
            ValueError: If an index is outside the range; on a GPU this is left to the data pipeline.
        """
        target = target.flatten()
        if target.device.type == 'cpu' and not torch.compiler.is_compiling():
            outside = (target != MISSING) & ((target < 0) | (target >= self.num_classes))
            if outside.any():
                raise UserError(self.describe_index(int(target[outside][0])))
        logits = predicted.to(statistics_dtype(predicted.dtype)).flatten(0, -2)
        total = F.cross_entropy(logits, target, ignore_index=MISSING, reduction='sum')
        return total, (target != MISSING).sum()

    def describe_index(self, index: float) -> str:
        """Return the message on a label that is none of the classes."""
        if self.labels is not None:
            expected = f'one of labels={list(self.labels)}'
        else:
            expected = f'0 to {self.num_classes - 1}'
        return (
            f'class {index:g} is outside the range: expected {expected}, or ignore_index={self.ignore_index} where the '
            'label is missing'
        )


@dataclass(frozen=True)
class PixelClasses(_Classes):
    """Map of classes, such as land cover.

    Args:
        num_classes (int): Number of classes. Defaults to the length of ``labels``.
        ignore_index (int): Value in the files that marks missing labels; NaN does, too. Defaults to -1.
        labels (Sequence[int], optional): Value of each class in the files, such as 10, 20, ... of ESA WorldCover.
            Defaults to None, 0 to num_classes - 1.
        optional (bool): Whether samples may lack the array. Defaults to False.
    """

    of_pixels = True


@dataclass(frozen=True)
class ImageClasses(_Classes):
    """Class of the whole image, such as its biome.

    Args:
        num_classes (int): Number of classes. Defaults to the length of ``labels``.
        ignore_index (int): Value in the files that marks a missing label; NaN does, too. Defaults to -1.
        labels (Sequence[int], optional): Value of each class in the files. Defaults to None, 0 to num_classes - 1.
        optional (bool): Whether samples may lack the array. Defaults to False.
    """

    of_pixels = False


TARGETS: dict[str, type[Target]] = {cls.__name__: cls for cls in (PixelValues, PixelClasses, ImageValues, ImageClasses)}
RESERVED = (INPUTS, 'type')


def build_targets(config: dict[str, dict]) -> dict[str, Target]:
    """Build targets from ``{name: dict(type='PixelValues', ...)}``.

    Raises:
        ValueError: If there is none, or a name, type or argument is not valid.
    """
    if not config:
        raise UserError("targets is empty: expected dict(NAME=dict(type='PixelValues', channels=...), ...)")
    return {name: _build(name, dict(one)) for name, one in config.items()}


def _build(name: str, config: dict) -> Target:
    if not name.replace('-', '_').isidentifier() or name in RESERVED or hasattr(torch.nn.ModuleDict(), name):
        raise UserError(f'targets: {name!r} cannot be the name of a target; choose another one of letters and digits')
    kind = config.pop('type', None)
    if kind not in TARGETS:
        raise UserError(f'targets.{name}.type={kind!r} is unknown: choose from {list(TARGETS)}')
    known = [field.name for field in fields(TARGETS[kind])]
    unknown = [key for key in config if key not in known]
    if unknown:
        raise UserError(f'targets.{name} of {kind} does not know {", ".join(unknown)}: choose from {known}')
    try:
        return TARGETS[kind](**config)
    except UserError as error:
        raise UserError(f'targets.{name}: {error}') from None
