"""A training loop whose interrupted and resumed runs are the uninterrupted one.

mmengine's ``EpochBasedTrainLoop`` resumes at the start of an epoch only, with random states of a new process. Here the
place in the epoch and all random states follow from the iteration alone, so that a checkpoint needs to store neither.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ..utils.errors import UserError
from .sampler import seeded


def seed_generators(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of all GPUs too."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Train epoch by epoch, and resume after any iteration as if nothing had happened.

    - A resumed epoch starts behind the images that it has seen; none of them is read again.
    - Before each iteration the global generators are seeded by (seed, iteration, rank). What a model draws, such as
      DropPath, is therefore the same after a resume; with another number of ranks it is another draw of the same
      distribution. Images and masks do not depend on ranks at all, and FCMAE draws nothing else.
    - With gradient accumulation, partially accumulated gradients are recomputed, since checkpoints do not store them.

    The number of processes and workers may change while the number of images per iteration, ``batch_size`` times
    processes, stays. The sampler must be a ``DeterministicSampler``, with ``drop_last=True`` if an epoch is to have the
    same length for any number of processes.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): Of the training images.
        max_epochs (int): Epochs to train.
        kwargs: See mmengine's ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If the sampler cannot skip, an epoch has no whole batch, or a resumed run has another number of
            images per iteration.
    """

    def __init__(self, runner, dataloader, max_epochs: int, **kwargs) -> None:
        config = dataloader if isinstance(dataloader, dict) else {}
        self._sampler_has_seed = config.get('sampler', {}).get('seed') is not None
        super().__init__(runner, dataloader, max_epochs, **kwargs)
        if not hasattr(self.dataloader.sampler, 'skip'):
            raise UserError(
                f'train_dataloader.sampler={type(self.dataloader.sampler).__name__} cannot skip images: '
                "use dict(type='DeterministicSampler'), or train_cfg.type='EpochBasedTrainLoop'"
            )
        if not len(self.dataloader):
            raise UserError(
                f'train_dataloader.batch_size={self.dataloader.batch_size} is more than the '
                f'{len(self.dataloader.sampler)} images of a process: choose a smaller one'
            )

    def run(self) -> torch.nn.Module:
        """Train to the end, from wherever the runner has resumed."""
        self._check_batch()
        if not self._sampler_has_seed:
            self.dataloader.sampler.seed = self.runner.seed  # of the checkpoint, which may differ from the config's
        self._epoch = self._iter // len(self.dataloader)
        self._recompute_gradients()
        return super().run()

    def run_epoch(self) -> None:
        """Train the rest of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in self._batches(self._epoch, self._iter % len(self.dataloader)):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train one iteration with random states of its own."""
        seed_generators(self.runner.seed, self._iter, get_rank())
        super().run_iter(idx, data_batch)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[int, dict]]:
        """Yield (index in the epoch, batch) of an epoch from batch ``first`` on; global random states stay."""
        sampler = self.dataloader.sampler
        sampler.set_epoch(epoch)
        sampler.skip = first * self.dataloader.batch_size
        with seeded(self.runner.seed, epoch, get_rank()):
            batches = iter(self.dataloader)
        yield from enumerate(batches, first)

    def _recompute_gradients(self) -> None:
        """Compute the gradients since the last update anew: they are not part of a checkpoint."""
        lost = self._iter % getattr(self.runner.optim_wrapper, '_accumulative_counts', 1)
        if not lost:
            return
        wanted, iteration = self._iter, self._iter - lost
        self.runner.optim_wrapper._inner_count = iteration
        self.runner.model.train()
        while iteration < wanted:
            for _, batch in self._batches(*divmod(iteration, len(self.dataloader))):
                seed_generators(self.runner.seed, iteration, get_rank())
                self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
                iteration += 1
                if iteration == wanted:
                    break

    def _check_batch(self) -> None:
        """Compare the images per iteration with the checkpoint's, and note them for the next one.

        Raises:
            ValueError: If they differ.
        """
        hub, processes = self.runner.message_hub, get_world_size()
        batch = self.dataloader.batch_size * processes
        before = hub.runtime_info.get('images_per_iteration', batch) if self._iter else batch
        if before != batch:
            raise UserError(
                f'train_dataloader.batch_size={self.dataloader.batch_size} in {processes} processes makes '
                f'{batch} images per iteration, but the run to resume has {before}: set it to '
                f'{before / processes:g}, or start anew from its weights with load_from'
            )
        hub.update_info('images_per_iteration', batch)
