"""Where the time of a step goes, by torch's profiler on the CPU.

In a pretraining step every operation's own time is counted to the differentiable function in which it ran, in models
that are not ours by what it computes. The profiler takes time itself, the more the smaller the operations, so that sums
are longer than a step that nobody watches.
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
        event: The operation, of torch's profiler.
        decoder (list[int]): Sites and channels of the decoder's map.
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
    """Return which of ``KINDS`` a profiled operation of any model is."""
    product, convolution, rest = KINDS
    if event.name in PRODUCTS:
        return product
    return convolution if event.name in CONVOLUTIONS else rest


def seconds_by(name_of, step):
    """Run a step once, and return the seconds of its operations by the name that ``name_of`` gives each."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step()
    seconds = Counter()
    for event in profiled.events():
        seconds[name_of(event)] += event.self_cpu_time_total / 1e6
    return seconds


def race_by(name_of, steps, rounds):
    """Profile steps in turns; return for each step the median seconds by name."""
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
