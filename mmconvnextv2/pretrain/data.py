"""Unlabelled pictures whose crop, flip and mask depend on (seed, epoch, index) alone.

A worker's or a rank's random state plays no part, so the number of workers or processes changes nothing.
"""
import logging
import random
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional, Sequence, Union

import cv2
import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS
from torch.utils.data import Sampler

from ..errors import RunError, UserError
from ..pictures import EXTENSIONS


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

    A file that cannot be read is named in the log, once a worker, and the next picture takes its place.

    Args:
        data_root (str): The folder; formats may be mixed, folders nested.
        pipeline (Sequence): Transforms, ``DrawVisibleCells`` and ``PackInputs`` last.
        max_corrupt_share (float): Share of unreadable files, in [0, 1), above which the run stops. Defaults to 0.01;
            one file is always forgiven.
        extensions (Sequence[str]): Endings, in any case, of the files to read; ``'.npy'`` is for ``LoadPicture``.
            Defaults to those of the usual picture formats.
        kwargs: See mmpretrain's ``CustomDataset``.

    Raises:
        RuntimeError: While training, when more files are unreadable than ``max_corrupt_share`` allows.
    """

    def __init__(self, data_root: str, pipeline: tuple = (), max_corrupt_share: float = 0.01,
                 extensions: Sequence[str] = EXTENSIONS, **kwargs) -> None:
        if not 0 <= max_corrupt_share < 1:
            raise UserError(f'max_corrupt_share={max_corrupt_share}: expected a share in [0, 1)')
        self.max_corrupt_share = max_corrupt_share
        super().__init__(data_root=data_root, pipeline=pipeline, with_label=False, extensions=extensions, **kwargs)

    def full_init(self) -> None:
        """List the files, and share one flag a file between workers."""
        if not self._fully_initialized:
            super().full_init()
            self._corrupt = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __getitem__(self, draw: Union[int, Draw]) -> dict:
        draw = draw if isinstance(draw, Draw) else Draw(0, 0, draw)
        for step in range(len(self)):
            index = (draw.index + step) % len(self)
            with seeded(*draw):
                try:
                    return self.prepare_data(index)
                except (OSError, AssertionError, SyntaxError, cv2.error) as error:
                    self._note_corrupt(index, error)
        raise RunError(f'none of the {len(self)} pictures below {self.data_root!r} can be read')

    def _note_corrupt(self, index: int, error: Exception) -> None:
        """Log an unreadable file, and stop the run when there are too many."""
        if not self._corrupt[index]:
            self._corrupt[index] = True
            print_log(f'skipped {self.get_data_info(index)["img_path"]}: {type(error).__name__}: {error} '
                      f'({int(self._corrupt.sum())} unreadable of {len(self)})', 'current', logging.WARNING)
        count = int(self._corrupt.sum())
        if count > max(1, self.max_corrupt_share * len(self)):
            names = [self.get_data_info(int(one))['img_path'] for one in self._corrupt.nonzero()[:10, 0]]
            raise RunError(f'{count} of {len(self)} pictures are unreadable, more than max_corrupt_share='
                           f'{self.max_corrupt_share} allows: {", ".join(names)}')


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """Each epoch, every picture once in an order drawn from (seed, epoch), dealt to the ranks in turn.

    Args:
        dataset (Dataset): What is sampled.
        seed (int, optional): Defaults to None, one drawn and shared by all ranks.
        shuffle (bool): Defaults to True.
        drop_last (bool): Leave the pictures at the end out that make ranks uneven, in place of showing the first ones
            again; together with the data loader's ``drop_last`` any number of ranks then sees the same batches.
            Defaults to False.

    Attributes:
        skip (int): Pictures of this rank to leave out at the start of the next pass.
    """

    def __init__(self,
                 dataset: torch.utils.data.Dataset,
                 seed: Optional[int] = None,
                 shuffle: bool = True,
                 drop_last: bool = False) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.skip = 0

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.size)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        order = np.resize(order, len(self) * self.world_size)  # the first pictures again, so that ranks are even
        own = order[self.rank::self.world_size][self.skip:]
        return iter([Draw(self.seed, self.epoch, int(index)) for index in own])

    def __len__(self) -> int:
        return self.size // self.world_size if self.drop_last else -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order; mmengine's loops call it."""
        self.epoch = epoch
