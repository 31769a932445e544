"""Training loop in which an interrupted and resumed run equals an uninterrupted one.

mmengine's ``EpochBasedTrainLoop`` resumes only at the start of an epoch, with the random states of a new process. Here
the position in the epoch and all random states are derived from the iteration, so checkpoints need to store neither.
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
    """Seed the global generators of Python, numpy and torch, including those of all GPUs."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Epoch-based training loop that resumes exactly after any iteration.

    - A resumed epoch continues after the images already seen; they are not read again.
    - Before each iteration, the global generators are seeded with (seed, iteration, rank). A model's random numbers,
      such as those of drop path, are therefore the same after a resume. With another number of ranks they differ, but
      have the same distribution. Images and masks do not depend on ranks, and FCMAE samples nothing else.
    - With gradient accumulation, partially accumulated gradients are recomputed, since checkpoints do not store them.

    The number of processes and workers may change as long as the number of images per iteration, ``batch_size`` times
    processes, stays the same. The sampler must be a ``DeterministicSampler``, with ``drop_last=True`` if epochs are to
    have the same length for any number of processes.

    Args:
        runner (Runner): Runner that owns the loop.
        dataloader (DataLoader | dict): Data loader of the training images, or its config.
        max_epochs (int): Number of epochs.
        kwargs: Arguments of mmengine's ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If the sampler cannot skip images, an epoch has no complete batch, or a resumed run has another
            number of images per iteration.
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
                f'{len(self.dataloader.sampler)} images per process: choose a smaller batch size'
            )

    def run(self) -> torch.nn.Module:
        """Train to the last epoch, starting from the iteration that the runner has resumed."""
        self._check_batch()
        if not self._sampler_has_seed:
            self.dataloader.sampler.seed = self.runner.seed  # the checkpoint's seed, which may differ from the config's
        self._epoch = self._iter // len(self.dataloader)
        self._recompute_gradients()
        return super().run()

    def run_epoch(self) -> None:
        """Train the remaining iterations of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in self._batches(self._epoch, self._iter % len(self.dataloader)):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train one iteration, with random states derived from its number."""
        seed_generators(self.runner.seed, self._iter, get_rank())
        super().run_iter(idx, data_batch)

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[int, dict]]:
        """Yield (index in the epoch, batch) from batch ``first`` on, without changing global random states."""
        sampler = self.dataloader.sampler
        sampler.set_epoch(epoch)
        sampler.skip = first * self.dataloader.batch_size
        with seeded(self.runner.seed, epoch, get_rank()):
            batches = iter(self.dataloader)
        yield from enumerate(batches, first)

    def _recompute_gradients(self) -> None:
        """Recompute the gradients accumulated since the last update, which checkpoints do not store."""
        lost = self._iter % getattr(self.runner.optim_wrapper, '_accumulative_counts', 1)
        if not lost:
            return
        target, iteration = self._iter, self._iter - lost
        self.runner.optim_wrapper._inner_count = iteration
        self.runner.model.train()
        while iteration < target:
            for _, batch in self._batches(*divmod(iteration, len(self.dataloader))):
                seed_generators(self.runner.seed, iteration, get_rank())
                self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
                iteration += 1
                if iteration == target:
                    break

    def _check_batch(self) -> None:
        """Compare the images per iteration with the checkpoint's, and record them for the next checkpoint.

        Raises:
            ValueError: If they differ.
        """
        hub, processes = self.runner.message_hub, get_world_size()
        batch = self.dataloader.batch_size * processes
        before = batch
        if self._iter:
            noted = hub.runtime_info.get('pictures_per_iteration', batch)  # the key of 0.1
            before = hub.runtime_info.get('images_per_iteration', noted)
        if before != batch:
            raise UserError(
                f'train_dataloader.batch_size={self.dataloader.batch_size} in {processes} processes makes '
                f'{batch} images per iteration, but the run to resume has {before}: set it to '
                f'{before / processes:g}, or start a new run from its weights with load_from'
            )
        hub.update_info('images_per_iteration', batch)
