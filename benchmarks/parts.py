"""Breakdown of the time of a step, with torch's profiler on the CPU.

In a pretraining step each operation's own time is attributed to the differentiable function in which it ran, in other
models to the kind of operation. The profiler adds time, more for smaller operations, so sums are longer than a step
without it.
"""

import statistics
from collections import Counter

from torch.profiler import ProfilerActivity, profile

PRODUCTS = ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm', 'mkldnn::_linear_pointwise')
MLPS, DEPTHWISE = ('_ResponseMLP',), ('_PackedDepthwise', '_Depthwise')
PARTS = (MULTIPLY, PASS, CONVOLVE, DECODE, UPDATE, REST) = (
    'response MLPs of the encoder, matrix products',
    'the same, passes over hidden features',
    'depthwise convolutions',
    'response MLPs of the decoder',
    'AdamW',
    'everything else',
)
CONVOLUTIONS = ('aten::mkldnn_convolution', 'aten::convolution_backward')
KINDS = ('matrix products', 'convolutions', REST)


def part_of(event, decoder):
    """Return which of ``PARTS`` a profiled operation belongs to.

    Args:
        event: Operation recorded by torch's profiler.
        decoder (list[int]): Number of sites and of channels of the decoder's map.
    """
    if event.name == 'aten::_fused_adamw_':
        return UPDATE
    outer = event
    while outer is not None and not outer.name.startswith(MLPS + DEPTHWISE):
        outer = outer.cpu_parent
    if outer is None:
        return REST
    if outer.name.startswith(DEPTHWISE):
        return CONVOLVE
    if list(outer.input_shapes[0][1:]) == decoder:
        return DECODE
    return MULTIPLY if event.name in PRODUCTS else PASS


def kind_of(event):
    """Return which of ``KINDS`` a profiled operation of any model belongs to."""
    product, convolution, rest = KINDS
    if event.name in PRODUCTS:
        return product
    return convolution if event.name in CONVOLUTIONS else rest


def seconds_by(name_of, step):
    """Run a step once, and return the seconds of its operations, summed by ``name_of``."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step()
    seconds = Counter()
    for event in profiled.events():
        seconds[name_of(event)] += event.self_cpu_time_total / 1e6
    return seconds


def race_by(name_of, steps, rounds):
    """Profile steps in turns, and return the median seconds by name for each step."""
    found = {contestant: [] for contestant in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for contestant, step in steps.items():
            found[contestant].append(seconds_by(name_of, step))
    return {
        contestant: {name: statistics.median(one[name] for one in seconds) for name in seconds[0]}
        for contestant, seconds in found.items()
    }
