"""Where the time of a pretraining step goes, by torch's profiler on the CPU.

Every operation's own time is counted to the differentiable function in which it ran. The profiler takes time itself,
the more the smaller the operations, so that sums are longer than a step that nobody watches.
"""
import statistics
from collections import Counter

from torch.profiler import ProfilerActivity, profile

PRODUCTS = ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm')
MLPS, DEPTHWISE = ('_ResponseMLP', ), ('_PackedDepthwise', '_Depthwise')
PARTS = (MULTIPLY, PASS, CONVOLVE, DECODE, UPDATE, REST) = (
    'response MLPs of the encoder, matrix products', 'the same, passes over hidden features', 'depthwise convolutions',
    'response MLPs of the decoder', 'AdamW', 'everything else')


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


def seconds_by_part(step, decoder):
    """Run a step once, and return the seconds of each part."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step()
    seconds = Counter()
    for event in profiled.events():
        seconds[part_of(event, decoder)] += event.self_cpu_time_total / 1e6
    return seconds


def race_by_part(steps, rounds, decoder):
    """Profile steps in turns; return for each step the median seconds of each part."""
    found = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(seconds_by_part(step, decoder))
    return {name: {part: statistics.median(one[part] for one in rounds) for part in PARTS}
            for name, rounds in found.items()}
