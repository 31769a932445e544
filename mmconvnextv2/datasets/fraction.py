"""A data set of which only a fraction of the images is used: how much does each start need labels?"""

from typing import Any

import numpy as np
from mmengine.dataset import RepeatDataset, force_full_init
from mmengine.registry import DATASETS

from ..utils.errors import UserError


def nested_order(num_images: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the images in the order in which a growing fraction takes them: a permutation, long (num_images, ).

    Args:
        num_images (int): Number of images.
        seed (int): Seed of the order.
        labels (np.ndarray, optional): Class per image (num_images, ). If given, every fraction has as even a share of
            each class as the whole. Defaults to None.
    """
    order = np.random.default_rng(seed).permutation(num_images)
    if labels is None:
        return order
    position = np.empty(num_images)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position[order], kind='stable')]


@DATASETS.register_module()
class LabelFraction(RepeatDataset):
    """A fraction of a data set's images, repeated until an epoch is as long as with all of them.

    A run therefore has the same number of iterations for every fraction. With one seed, smaller fractions are part of
    larger ones. Classes keep their shares where each image has one class (``get_gt_labels`` of MMPretrain).

    Args:
        dataset (dict): Config of the data set.
        fraction (float): Share of its images, in (0, 1]; at least one image is taken.
        seed (int): Seed of the choice. Defaults to 0.
        lazy_init (bool): Whether to read annotations later. Defaults to False.

    Raises:
        ValueError: If the fraction is out of range.
    """

    def __init__(self, dataset: dict, fraction: float, seed: int = 0, lazy_init: bool = False) -> None:
        if not 0 < fraction <= 1:
            raise UserError(f'fraction={fraction} of LabelFraction: expected a share in (0, 1]')
        self.fraction, self.seed = fraction, seed
        super().__init__(dataset, times=1, lazy_init=lazy_init)

    def full_init(self) -> None:
        """Read the data set, and choose images."""
        if self._fully_initialized:
            return
        super().full_init()
        labels = np.asarray(self.dataset.get_gt_labels()) if hasattr(self.dataset, 'get_gt_labels') else None
        order = nested_order(self._ori_len, self.seed, labels)
        self.chosen = np.sort(order[: max(1, round(self.fraction * self._ori_len))])

    @force_full_init
    def _get_ori_dataset_idx(self, idx: int) -> int:
        return int(self.chosen[idx % len(self.chosen)])

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes in an image, for ``ClassBalancedDataset``."""
        return self.dataset.get_cat_ids(self._get_ori_dataset_idx(idx))

    def __str__(self) -> str:
        return f'{len(self.chosen):,} of {self._ori_len:,} images (fraction {self.fraction:g}, seed {self.seed})'


def fractions_in(dataset: Any) -> list[LabelFraction]:
    """Return the :class:`LabelFraction` of a data set, which may be inside of wrappers."""
    if isinstance(dataset, LabelFraction):
        return [dataset]
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return [one for child in inner if child is not None for one in fractions_in(child)]
