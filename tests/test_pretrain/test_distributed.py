"""Two processes with half the batch each make the step of one process, without ``find_unused_parameters``."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fcmae_runs import in_processes
from mmpretrain.structures import DataSample
from small_models import make_fcmae
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Loss(nn.Module):
    """DDP wraps ``forward``."""

    def __init__(self):
        super().__init__()
        self.model = make_fcmae()

    def forward(self, images, samples):
        return self.model.loss(images, samples)['loss']


def make_batch():
    generator = np.random.default_rng(0)
    samples = [DataSample() for _ in range(8)]
    for sample in samples:
        sample.set_metainfo(dict(visible_cells=np.sort(generator.permutation(6)[:2])))
    return torch.from_numpy(generator.standard_normal((8, 3, 64, 96))), samples


def steps(model, images, samples):
    """Make three AdamW steps; return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(images, samples)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def work(folder):
    rank = dist.get_rank()
    images, samples = make_batch()
    model = Loss()
    losses = torch.stack(steps(DistributedDataParallel(model), images[rank::2], samples[rank::2]))
    dist.all_reduce(losses)
    if rank == 0:
        torch.save(dict(losses=losses / 2, weights=model.state_dict()), folder / 'result.pth')


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Losses and weights after three steps equal those of one process with the whole batch, to 1e-9 in float64, and
    DDP finds a gradient for every parameter without looking for unused ones."""
    in_processes(work, tmp_path, folder=tmp_path)
    result = torch.load(tmp_path / 'result.pth', weights_only=True)
    model = Loss()
    losses = torch.stack(steps(model, *make_batch()))
    torch.testing.assert_close(result['losses'], losses, rtol=1e-9, atol=1e-9)
    assert losses[2] < losses[0]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(result['weights'][name], weight, rtol=1e-7, atol=1e-7)
