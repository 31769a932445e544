"""DeterministicSampler: the same draws for the same seed, whatever the number of processes and workers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..utils.moved import register_renamed


class SampleKey(NamedTuple):
    """Which random draw of which image a sampler asks for."""

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


@DATA_SAMPLERS.register_module()
class DeterministicSampler(Sampler):
    """Each epoch, every image once in an order drawn from (seed, epoch), dealt to the ranks in turn.

    Args:
        dataset (Dataset): What is sampled.
        seed (int, optional): Defaults to None, one drawn and shared by all ranks.
        shuffle (bool): Defaults to True.
        drop_last (bool): Drop the tail, so that all ranks see equally many samples, instead of padding with
            repeats; together with the data loader's ``drop_last`` any number of ranks then sees the same batches.
            Defaults to False.

    Attributes:
        skip (int): Images of this rank to leave out at the start of the next pass.
    """

    def __init__(
        self, dataset: torch.utils.data.Dataset, seed: int | None = None, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.skip = 0

    def __iter__(self) -> Iterator[SampleKey]:
        order = np.arange(self.size)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        order = np.resize(order, len(self) * self.world_size)  # the first images again, so that ranks are even
        own = order[self.rank :: self.world_size][self.skip :]
        return iter([SampleKey(self.seed, self.epoch, int(index)) for index in own])

    def __len__(self) -> int:
        return self.size // self.world_size if self.drop_last else -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order; mmengine's loops call it."""
        self.epoch = epoch


register_renamed(DATA_SAMPLERS, 'DrawSampler', DeterministicSampler)
