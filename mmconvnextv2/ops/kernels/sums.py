"""Sums of partial results over programs. Without atomics, runs are reproducible bit for bit."""

import triton
import triton.language as tl

TILE = 32  # rows that are added at a time


@triton.jit
def sum_chunks(source, stride, count, channel, is_channel, ACC: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr):
    """Return the sum of ``count`` rows of channels that are ``stride`` apart; STEPS * TILE covers them."""
    total = tl.zeros((TILE, channel.shape[0]), ACC)
    for step in range(STEPS):
        chunk = step * TILE + tl.arange(0, TILE)[:, None]
        mask = (chunk < count) & is_channel[None]
        total += tl.load(source + chunk * stride + channel[None], mask=mask, other=0.0)
    return tl.sum(total, 0)


def cdiv(number: int, divisor: int) -> int:
    """Divide and round up; Triton's own function also serves kernels, and is slow to call."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not smaller than a number; faster than Triton's."""
    return 1 << max(number - 1, 0).bit_length()


def steps_of(*counts: int) -> dict[str, int]:
    """Return the compile-time sizes of a sum of at most these rows; few values occur."""
    return dict(STEPS=next_power_of_2(cdiv(max(*counts, 1), TILE)), TILE=TILE)
