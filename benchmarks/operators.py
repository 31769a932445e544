"""Compare values, gradients and milliseconds of mmcv's operators, torchvision's and compiled; write operators.md.

    make env OPS=compiled VENV=.venv-compiled && .venv-compiled/bin/python benchmarks/operators.py

Both implementations serve the same Python functions of ``mmcv.ops`` in one process, in turns. Needs an mmcv with
compiled operators.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import mmcv
import torch

import mmconvnextv2

OUT = Path(__file__).with_suffix('.md')
ROUNDS = 30


class Case(NamedTuple):
    """Call whose results are compared.

    Args:
        function (Callable): Function of the inputs that returns tensors.
        inputs (tuple[Tensor]): Inputs; gradients are computed for those that require one.
    """

    function: Callable
    inputs: tuple


def load() -> dict[str, object]:
    """Return mmcv's compiled module and ours, by name."""
    if PathFinder.find_spec('mmcv._ext', mmcv.__path__) is None:
        sys.exit('error: this mmcv has no compiled operators: OPS=compiled make env VENV=.venv-compiled')
    path = Path(mmconvnextv2.__file__).parent / 'mmcv_operators' / 'extension.py'
    spec = spec_from_file_location('operators_by_torchvision', path)
    ours = module_from_spec(spec)
    spec.loader.exec_module(ours)
    import mmcv._ext as theirs

    return dict(compiled=theirs, torchvision=ours)


@contextmanager
def served_by(extension):
    """Make every module of ``mmcv.ops`` call ``extension`` inside the ``with`` statement."""
    import mmcv.ops  # noqa: F401

    modules = [
        module for name, module in sys.modules.items() if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')
    ]
    before = [module.ext_module for module in modules]
    for module in modules:
        module.ext_module = extension
    try:
        yield
    finally:
        for module, one in zip(modules, before):
            module.ext_module = one


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side, centre = (torch.rand(count, 2, generator=generator) for _ in range(2))
    side, centre = side * 200 + 10, centre * torch.tensor([1333.0, 800.0])
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return boxes.clamp(min=0).minimum(torch.tensor([1333.0, 800.0, 1333.0, 800.0]))


def cases() -> dict[str, Case]:
    """Return the cases by name; every call returns the same inputs."""
    from mmcv import ops

    torch.manual_seed(0)
    found = {}
    for count in (100, 300, 1000, 2000):
        for classes in (1, 80):
            given = (random_boxes(count), torch.rand(count), torch.randint(classes, (count,)))
            for kind in (
                dict(type='nms'),
                *(dict(type='soft_nms', method=method, min_score=1e-3) for method in ('naive', 'linear', 'gaussian')),
            ):
                config = dict(kind, iou_threshold=0.5)
                title = f'{kind["type"]} {kind.get("method", "")}'.strip()
                found[f'{title}, {count} boxes, {classes} {"class" if classes == 1 else "classes"}'] = Case(
                    lambda *inputs, config=config: ops.batched_nms(*inputs, config), given
                )
    dets = torch.cat([random_boxes(500), torch.rand(500, 1)], dim=1)
    found['nms_match, 500 boxes'] = Case(lambda one: [*ops.nms_match(one, 0.5)], (dets,))
    maps = torch.randn(2, 64, 100, 168, requires_grad=True)
    rois = torch.cat([torch.arange(512.0)[:, None] % 2, random_boxes(512)], dim=1)
    for ratio in (0, 2):
        found[f'RoIAlign 7 x 7, sampling ratio {ratio}, 512 RoIs, 64 channels'] = Case(
            lambda one, two, ratio=ratio: [ops.roi_align(one, two, 7, 1 / 8, ratio, 'avg', True)], (maps, rois)
        )
    x, weight = torch.randn(2, 32, 50, 84, requires_grad=True), torch.randn(32, 32, 3, 3, requires_grad=True)
    offset, mask = torch.randn(2, 18, 50, 84, requires_grad=True), torch.rand(2, 9, 50, 84, requires_grad=True)
    bias = torch.randn(32, requires_grad=True)
    found['deformable convolution, 32 channels'] = Case(
        lambda *inputs: [ops.deform_conv2d(*inputs, 1, 1)], (x, offset, weight)
    )
    found['deformable convolution with mask, 32 channels'] = Case(
        lambda *inputs: [ops.modulated_deform_conv2d(*inputs, 1, 1)], (x, offset, mask, weight, bias)
    )
    return found


def run(case: Case):
    """Return the outputs, and the gradients of a fixed weighted sum of them."""
    inputs = [one.detach().requires_grad_(one.requires_grad) for one in case.inputs]
    outputs = case.function(*inputs)
    wanted = [one for one in inputs if one.requires_grad]
    if not wanted:
        return list(outputs), []
    factors = [torch.arange(one.numel()).view_as(one).sin() for one in outputs]
    return list(outputs), list(torch.autograd.grad(outputs, wanted, factors))


def difference(one, other) -> float:
    """Return the largest absolute difference, or infinity if shapes differ."""
    if [a.shape for a in one] != [b.shape for b in other]:
        return float('inf')
    return max([0.0, *((a.double() - b.double()).abs().max().item() for a, b in zip(one, other) if a.numel())])


def compare(case: Case, extensions: dict[str, object], rounds: int) -> dict[str, object]:
    """Return the differences of values and gradients, the largest value, and each median in milliseconds."""
    results, seconds = {}, {name: [] for name in extensions}
    for name, extension in extensions.items():
        with served_by(extension):
            results[name] = run(case)
    for _ in range(rounds):
        for name, extension in extensions.items():
            with served_by(extension):
                started = time.perf_counter()
                run(case)
                seconds[name].append(time.perf_counter() - started)
    (values, gradients), (own_values, own_gradients) = results['compiled'], results['torchvision']
    largest = max([one.abs().max().item() for one in (*values, *gradients) if one.numel()], default=0)
    return dict(
        values=difference(values, own_values),
        gradients=difference(gradients, own_gradients),
        has_gradients=bool(gradients),
        largest=largest,
        **{name: statistics.median(times) * 1e3 for name, times in seconds.items() if times},
    )


def main() -> None:
    """Compare every case and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='turns per implementation')
    rounds, extensions = parser.parse_args().rounds, load()
    from measure import machine

    lines = [
        '# Operators of mmcv, compiled and from torchvision',
        '',
        'Written by `benchmarks/operators.py`. Differences are the largest absolute ones; 0 means bitwise equal. Times '
        f'are the median of {rounds} turns,',
        'with the backward pass if there is one, and include the Python wrapper of mmcv that both share. '
        'Not measured on a GPU.',
        '',
        machine(torch.device('cpu'), ('torch', 'torchvision', 'mmcv')),
        '',
        '| Operator | Values | Gradients | Largest | Compiled, ms | torchvision, ms | Ratio |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for name, case in cases().items():
        row = compare(case, extensions, rounds)
        gradients = f'{row["gradients"]:.2g}' if row['has_gradients'] else ''
        lines.append(
            f'| {name} | {row["values"]:.2g} | {gradients} | {row["largest"]:.3g} | {row["compiled"]:.2f} | '
            f'{row["torchvision"]:.2f} | {row["torchvision"] / row["compiled"]:.2f} |'
        )
        print(lines[-1], flush=True)
    OUT.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
