"""Unlabelled pictures whose crop, flip and mask depend on (seed, epoch, index) alone.

A worker's or a rank's random state plays no part, so the number of workers or processes changes nothing.
"""
import random
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional, Union

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """Which random draw of which picture a sampler asks for."""
    seed: int
    epoch: int
    index: int


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside the block, and restore them afterwards."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


@DATASETS.register_module()
class UnlabelledImages(CustomDataset):
    """Every picture of a folder tree.

    Args:
        data_root (str): The folder; formats may be mixed.
        pipeline (Sequence): Transforms, ``DrawVisibleCells`` and ``PackInputs`` last.
        kwargs: See mmpretrain's ``CustomDataset``.
    """

    def __init__(self, data_root: str, pipeline: tuple = (), **kwargs) -> None:
        super().__init__(data_root=data_root, pipeline=pipeline, with_label=False, **kwargs)

    def __getitem__(self, draw: Union[int, Draw]) -> dict:
        draw = draw if isinstance(draw, Draw) else Draw(0, 0, draw)
        with seeded(*draw):
            return super().__getitem__(draw.index)


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """Each epoch, every picture once in an order drawn from (seed, epoch), dealt to the ranks in turn.

    Args:
        dataset (Dataset): What is sampled.
        seed (int, optional): Defaults to None, one drawn and shared by all ranks.
        shuffle (bool): Defaults to True.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, seed: Optional[int] = None, shuffle: bool = True) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.epoch = 0

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.size)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        order = np.resize(order, len(self) * self.world_size)  # the first pictures again, so that ranks are even
        return iter([Draw(self.seed, self.epoch, int(index)) for index in order[self.rank::self.world_size]])

    def __len__(self) -> int:
        return -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order; mmengine's loops call it."""
        self.epoch = epoch
