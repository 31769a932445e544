"""Estimate the cost of FCMAE pretraining of base and huge on 8 and 64 GPUs; prints the tables of docs/scale.md.

    python benchmarks/cost.py --images DIR

Counted exactly, without a GPU, on tensors without data: parameters, the multiply-adds of a whole training step (packed
execution, mask ratio 0.6, 224 pixels) and the bytes that autograd keeps for the backward pass under bfloat16 autocast.
Measured on the given folder: the mean size of an image file, and the number of images that the FCMAE pipeline reads per
second of one core's time. Assumed: the number of operations per second that a GPU sustains.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from contestants import samples
from loader import pipelines
from measure import saved_bytes, table
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch._subclasses.fake_tensor import FakeTensorMode

from mmconvnextv2.commands.flops import count_parameters, multiply_adds
from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block

CONFIG = 'configs/fcmae/fcmae_convnextv2-{}_64xb64-1600e_in1k.py'
IMAGENET, EPOCHS, BATCH, A_GPU = (
    1_281_167,
    1600,
    4096,
    64,
)  # images, epochs of the released weights, effective batch, images per GPU at a time
SUSTAINED = (50, 100, 200, 400)  # assumed, 10^12 operations per second and GPU
GPUS = (8, 64)
GIB = 2**30


class Counted(NamedTuple):
    """Counted costs of a model: elements, multiply-adds and bytes."""

    parameters: int
    block: int  # elements of the largest part that FSDP2 gathers at a time
    forward: float  # multiply-adds per image
    step: float  # the same, forward and backward
    fixed: int  # bytes kept for backward, independent of the batch
    kept: int  # bytes kept for backward per image
    recomputed: int  # the same with model.backbone.with_cp=True


def build(size, with_cp=False, arch=None):
    """Build the recipe's model, which needs no memory inside ``FakeTensorMode``."""
    cfg = Config.fromfile(CONFIG.format(size))
    cfg.model.backbone.update(with_cp=with_cp, **(dict(arch=arch) if arch else {}))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model).train()


def random_batch(batch, side=224):
    """Return images, and samples with visible cells as in the recipe."""
    return torch.randn(batch, 3, side, side), samples(batch, side, 0.6)


def count_kept(model, batch, bf16=True):
    """Count the bytes that autograd keeps for backward."""
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        return saved_bytes(lambda: model.loss(*random_batch(batch))['loss'], model)


def count_work(model):
    """Return the multiply-adds of a training forward of one image, and of forward and backward."""
    images = random_batch(1)

    @torch.enable_grad()
    def forward():
        return model.loss(*images)['loss']

    return multiply_adds(forward)[1], multiply_adds(lambda: forward().backward())[1]


def count(size, arch=None):
    """Count the costs of one size; see :class:`Counted`."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(size, arch=arch)
        blocks = [count_parameters(module) for module in model.modules() if isinstance(module, ConvNeXtV2Block)]
        rest = count_parameters(model) - sum(blocks)
        forward, step = count_work(model)
        one, two = (count_kept(model, batch) for batch in (1, 2))
        saving = build(size, with_cp=True, arch=arch)
        recomputed = count_kept(saving, 2) - count_kept(saving, 1)
    return Counted(count_parameters(model), max(*blocks, rest), forward, step, 2 * one - two, two - one, recomputed)


def measure(folder, rounds=3):
    """Return the number of images, the mean bytes per file, and the images read per second of one core's time.

    The rate is the best of several rounds, in process time, which excludes the time that other work had the core.
    """
    number, steps = pipelines(folder)
    sizes = [path.stat().st_size for path in Path(folder).rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg')]
    read, seconds = steps['FCMAE pipeline'], []
    for _ in range(rounds):
        started = time.process_time()
        read()
        seconds.append(time.process_time() - started)
    return len(sizes), sum(sizes) / len(sizes), number / min(seconds)


def memory(counted, gpus, sharded, recompute=False):
    """Return bytes per GPU: weights, gradients, AdamW's two moments, communication buffers, activations for backward.

    DDP keeps a second copy of the gradients in its buckets. FSDP2 shards everything, and holds the current and the next
    part unsharded, with the gradients of one.
    """
    state = 16 * counted.parameters
    state = state / gpus + 3 * 4 * counted.block if sharded else state + 4 * counted.parameters
    return state + counted.fixed + A_GPU * (counted.recomputed if recompute else counted.kept)


def counted_table(sizes):
    """Return the table of counted costs."""
    rows = [
        [
            size,
            f'{one.parameters / 1e6:.1f}',
            f'{one.forward / 1e9:.2f}',
            f'{one.step / 1e9:.2f}',
            f'{one.kept / 2**20:.1f}',
            f'{one.recomputed / 2**20:.1f}',
            f'{one.fixed / 2**20:.0f}',
        ]
        for size, one in sizes.items()
    ]
    return table(
        [
            '',
            'parameters, M',
            'forward multiply-adds, G per image',
            'training step, G per image',
            'kept for backward, MiB per image',
            'with `with_cp`',
            'independent of the batch, MiB',
        ],
        rows,
    )


def memory_table(sizes):
    """Return the table of counted memory, GiB per GPU."""
    rows = []
    for size, one in sizes.items():
        cells = [
            memory(one, gpus, sharded, recompute)
            for sharded, gpus in ((False, 1), (True, 8), (True, 64))
            for recompute in (False, True)
        ]
        rows.append([size, *(f'{cell / GIB:.1f}' for cell in cells)])
    saving = 'with `with_cp`'
    return table(['', 'DDP', saving, 'FSDP2, 8 GPUs', saving, 'FSDP2, 64 GPUs', saving], rows)


def hours_table(sizes, mean_bytes, rate):
    """Return the table of hours and of the load on data loader and network, by the assumed speed of a GPU."""
    rows = []
    for size, one in sizes.items():
        for gpus in GPUS:
            whole = (
                (gpus - 1) / gpus * 4 * one.parameters
            )  # bytes sent per GPU in one ring all-gather or reduce-scatter
            for speed in SUSTAINED:
                a_gpu = speed * 1e12 / (2 * one.step)  # images per second
                updates = gpus * a_gpu / BATCH  # per second
                rows.append(
                    [
                        size,
                        gpus,
                        speed,
                        f'{EPOCHS * IMAGENET / (gpus * a_gpu) / 3600:.1f}',
                        f'{a_gpu:.0f}',
                        f'{a_gpu / rate:.1f}',
                        f'{gpus * a_gpu * mean_bytes / 2**20:.0f}',
                        f'{2 * whole * updates / 1e9:.2f}',
                        f'{3 * whole * a_gpu / A_GPU / 1e9:.2f}',
                    ]
                )
    return table(
        [
            '',
            'GPUs',
            '10^12 operations/s per GPU (assumed)',
            'hours',
            'images/s per GPU',
            'cores per GPU for reading',
            'MiB/s from disk, total',
            'GB/s sent per GPU, DDP',
            'FSDP2',
        ],
        rows,
    )


def published_check():
    """Return the speed implied by the paper: 800 epochs of Base in 7.7 hours on 256 TPU v3 cores, with masked maps."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build('base')
        model.execution = 'masked'
        _, step = count_work(model)
    speed = 800 * IMAGENET * 2 * step / (7.7 * 3600 * 256)
    return (
        f'Published: 7.7 hours for 800 epochs of Base on 256 TPU v3 cores, all sites computed ({step / 1e9:.1f} G '
        f'multiply-adds per step and image, counted): {speed / 1e12:.1f} * 10^12 operations per second and core.'
    )


def floor_table(rate, workers=(8, 16)):
    """Return the table of hours needed only to read the images, for any model."""
    rows = [
        [gpus, count, f'{count * rate:.0f}', f'{EPOCHS * IMAGENET / (gpus * count * rate) / 3600:.1f}']
        for gpus in GPUS
        for count in workers
    ]
    return table(['GPUs', 'cores per GPU', 'images/s per GPU', 'hours, at least'], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['base', 'huge'])
    parser.add_argument('--images', required=True, help='folder of JPEGs like those used in training')
    args = parser.parse_args()
    number, mean_bytes, rate = measure(args.images)
    sizes = {size: count(size) for size in args.sizes}
    print(f'Counted (batch of {A_GPU} per GPU below):\n\n{counted_table(sizes)}\n')
    print(
        f"Measured: {number} images of {mean_bytes / 1024:.1f} KiB on average; {rate:.0f} per second of one core's "
        f'time.\n\nGiB per GPU, counted:\n\n{memory_table(sizes)}\n'
    )
    print(
        f'{EPOCHS} epochs of ImageNet-1K, effective batch {BATCH}:\n\n{hours_table(sizes, mean_bytes, rate)}\n\n'
        f'Reading only:\n\n{floor_table(rate)}\n\n{published_check()}'
    )


if __name__ == '__main__':
    main()
