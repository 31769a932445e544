"""DeterministicSampler: the same samples for the same seed, for any number of processes and workers."""

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
    """Key of one sample: the image's index, and the seed and epoch that determine its augmentation."""

    seed: int
    epoch: int
    index: int


SPARE: list[np.random.BitGenerator] = []  # generators of numpy that no block uses


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global CPU generators of Python, numpy and torch inside the block, and restore them afterwards.

    numpy's generator is exchanged rather than copied, which takes a fortieth of the time; a normal number that its
    ``randn`` holds back for the next call is dropped.
    """
    state = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    np.random.set_bit_generator(SPARE.pop() if SPARE else np.random.MT19937(0))
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        SPARE.append(np.random.get_bit_generator())
        np.random.set_bit_generator(state[1])
        torch.set_rng_state(state[2])


@DATA_SAMPLERS.register_module()
class DeterministicSampler(Sampler):
    """Sampler of every image once per epoch, in an order derived from (seed, epoch) and dealt to the ranks in turn.

    Args:
        dataset (Dataset): Data set to sample from.
        seed (int, optional): Seed of the order and of each image's augmentation. Defaults to None, a random seed shared
            by all ranks.
        shuffle (bool): Whether to shuffle the images. Defaults to True.
        drop_last (bool): Whether to drop the tail so that all ranks see equally many samples, instead of padding with
            repeats. Together with the data loader's ``drop_last``, batches are then the same for any number of ranks.
            Defaults to False.

    Attributes:
        skip (int): Number of this rank's images to skip at the start of the next pass.
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
        order = np.resize(order, len(self) * self.world_size)  # cut, or padded with the first images again
        own = order[self.rank :: self.world_size][self.skip :]
        return iter([SampleKey(self.seed, self.epoch, int(index)) for index in own])

    def __len__(self) -> int:
        return self.size // self.world_size if self.drop_last else -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the next order; called by mmengine's loops."""
        self.epoch = epoch


register_renamed(DATA_SAMPLERS, 'DrawSampler', DeterministicSampler)
