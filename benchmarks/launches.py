"""Count what a GPU would be asked to do, and time the host that asks, without a GPU; write launches.md.

    python benchmarks/launches.py --out benchmarks/launches.md

Operations that write memory count as one launch each, inside this package's operators too; Triton kernels are launched
in its interpreter, and not run. Whole training steps are those of the recipes, with bfloat16 autocast.

The host time of a block is measured in another process where the arithmetic is negligible and Triton's launcher runs
up to its call of the driver.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

if __name__ == '__main__' and '--host' not in sys.argv:
    os.environ['TRITON_INTERPRET'] = '1'  # before Triton is imported

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.models.execution.dense import Dense
from mmconvnextv2.models.execution.packed import Packed
from mmconvnextv2.ops import block as block_operators
from mmconvnextv2.ops import depthwise_triton, dispatch, response_mlp_triton
from mmconvnextv2.ops.grid import Grid, cell_slots

OPERATORS = {
    operator._opoverload: operator
    for module in (depthwise_triton, response_mlp_triton, block_operators)
    for operator in vars(module).values()
    if hasattr(operator, '_opoverload')
}
EMPTY = {'empty', 'new_empty', 'empty_like', 'empty_strided', 'new_empty_strided'}
FREE = EMPTY | {'lift_fresh', '_unsafe_view', 'detach', 'promote_types'}
RECIPES = {
    'Mask R-CNN-T': 'configs/mask_rcnn/mask-rcnn_convnextv2-t_fpn_lsj-3x_coco.py',
    'UperNet-T': 'configs/upernet/upernet_convnextv2-t_160k_ade20k-512x512.py',
}
SHARE = 0.7  # of a step's launches
SIDE, BATCH = 128, 2  # of the images of whole steps; launches do not depend on them
HEADER = """# Launches, without a GPU

What a forward and backward pass ask of a GPU (`python benchmarks/launches.py`, which says how it is counted). A GPU
that waits for launches is idle, so their number bounds small batches. Nothing here was measured on a GPU.
"""

LEFT = """
Where a library multiplies matrices, each of Tiny's 18 blocks has at least 17 launches: 6 products; 2 convolutions, the
first with LayerNorm, and the weight's gradient; LayerNorm's gradient; 2 passes over hidden features in each direction,
since products lie between; the residual's sum and its gradient; and sums of partial results. Stem, downsampling and
output norms have 24 with their gradients, and casts of images and of all parameters, and drop path, 3 if each is one
kernel. In all a backbone has 333; where less is left for it, such kernels cannot take 30 % off.
"""


class Launches(TorchDispatchMode):
    """Counts operations that write memory, inside this package's operators too, and these operators.

    Args:
        zeros (bool): Whether to fill new memory with zeros, for kernels that are not run. Defaults to False.
    """

    def __init__(self, zeros: bool = False):
        super().__init__()
        self.count, self.custom, self.zeros = 0, 0, zeros

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in OPERATORS:
            self.custom += 1
            with self:
                return OPERATORS[function]._init_fn(*args, **(kwargs or {}))
        name, result = function._schema.name.split('::')[1], function(*args, **(kwargs or {}))
        if self.zeros and name in EMPTY:
            result.zero_()
        self.count += name not in FREE and not _is_view(function, args, result)
        return result


def _is_view(function, args, result):
    """Return whether an operation only returned a view of its first argument, as some do and some may."""
    if not any(one.alias_info and not one.alias_info.is_write for one in function._schema.arguments):
        return False
    if not (isinstance(result, torch.Tensor) and args and isinstance(args[0], torch.Tensor)):
        return True
    return result.untyped_storage()._cdata == args[0].untyped_storage()._cdata


@contextmanager
def counted_kernels(run):
    """Yield a list that gets an item per launch of a Triton kernel in the interpreter; run them, or only count."""
    from triton.runtime.interpreter import GridExecutor

    launched, call = [], GridExecutor.__call__

    def launch(*args, **kwargs):
        launched.append(1)
        if run:
            with _disable_current_modes():  # the interpreter copies its arguments
                return call(*args, **kwargs)

    GridExecutor.__call__ = launch
    try:
        yield launched
    finally:
        GridExecutor.__call__ = call


def cells_of(batch, side):
    """Return visible cells of maps of side x side cells at a mask ratio of 0.6: (batch, K)."""
    random, visible = torch.Generator().manual_seed(0), max(side * side * 2 // 5, 1)
    return torch.stack([torch.randperm(side * side, generator=random)[:visible].sort()[0] for _ in range(batch)])


def make_block(packed, batch=2, channels=32, side=4, patch=1, drop_path_rate=0.1, device='cpu'):
    """Return a training block with its sites, grid and execution, on side x side cells of patch x patch sites."""
    torch.manual_seed(0)
    block = ConvNeXtV2Block(channels, drop_path_rate).to(device).train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    grid = Grid(side * patch, side * patch, 32 // patch)
    if packed:
        cells = cells_of(batch, side).to(device)
        grid = replace(grid, visible_cells=cells, cell_slots=cell_slots(cells, side, side))
    sites = torch.randn(batch, grid.num_sites, channels, device=device, requires_grad=True)
    return block, sites, grid, Packed() if packed else Dense()


def _product_on_cuda(left, right, dtype):
    """Count one product, whose result is in another dtype at once."""
    left @ right
    return torch.empty(len(left), right.shape[1], dtype=dtype)


@contextmanager
def as_on_cuda(fold=None):
    """Make operations on CPU tensors choose what they choose on a GPU with torch 2.8 or later."""
    modules = sys.modules['mmconvnextv2.ops.response_mlp'], block_operators
    before, fold_scale, check = response_mlp_triton._product, dispatch.fold_scale, dispatch._default.check
    dispatch.set_check(lambda *key: True)
    for module in modules:
        module.fold_scale = lambda x: x.shape[1] > dispatch.FOLD_FROM * x.shape[2] if fold is None else fold
    response_mlp_triton._product = _product_on_cuda
    try:
        yield
    finally:
        response_mlp_triton._product = before
        for module in modules:
            module.fold_scale = fold_scale
        dispatch.set_check(check)


def count_block(packed, kernels=None, fold=False):
    """Return the launches of a block's forward and backward pass under autocast, and its operators."""
    block, sites, grid, execution = make_block(packed)
    block.kernels = kernels
    with as_on_cuda(fold), counted_kernels(run=False) as launched, Launches(zeros=True) as mode:
        with torch.autocast('cpu', torch.bfloat16):
            output = block(sites, grid, execution)
        output.backward(torch.zeros_like(output))
    return mode.count + len(launched) - 1, mode.custom  # without the gradient that is given


def count_step(config, backbone, upstream=False):
    """Return the launches of a recipe's step by part, drop path included.

    Args:
        config (str): Recipe.
        backbone (str): Ours, or mmpretrain's.
        upstream (bool): Whether AdamW is as in mmdet's and mmseg's recipes of ConvNeXt: their groups, not fused.
            Defaults to False, as in our recipes.
    """
    from contestants import downstream
    from mmengine.optim import build_optim_wrapper

    from mmconvnextv2 import ConvNeXtV2
    from mmconvnextv2.commands.arguments import load_config

    contestant = downstream(config, BATCH, SIDE, torch.device('cpu'), backbone, drop_path=True)
    cfg, model = load_config(config), contestant.model
    if upstream:
        cfg.optim_wrapper.constructor = f'{cfg.default_scope}.LearningRateDecayOptimizerConstructor'
        cfg.optim_wrapper.paramwise_cfg = dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6)
        cfg.optim_wrapper.optimizer.update(fused=False, foreach=True)  # torch's default on GPUs
    elif backbone == 'mmpretrain':  # our groups of parameters
        object.__setattr__(model.backbone, 'get_layer_depth', ConvNeXtV2(cfg.model.backbone.arch).get_layer_depth)
    with redirect_stdout(StringIO()):  # upstream's constructor prints a line per parameter
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    counts = {}

    def count(part, function):
        with counted_kernels(run=False) as launched, Launches(zeros=True) as mode:
            result = function()
        counts[part] = mode.count + len(launched)
        return result

    def loss():
        with torch.autocast('cpu', torch.bfloat16):
            return contestant.loss()

    def maps():
        with torch.autocast('cpu', torch.bfloat16):
            return model.backbone(torch.randn(BATCH, 3, SIDE, SIDE))

    with as_on_cuda():
        for _ in range(2):  # the first step of AdamW also creates its moments
            count('backward', count('forward', loss).backward)
            count('optimizer', optimizer.step)
            optimizer.zero_grad()
        counts['whole'] = sum(counts.values())
        outputs = count('backbone', maps)
        before = counts['backbone']
        count('backbone', lambda: torch.autograd.backward(outputs, [torch.zeros_like(one) for one in outputs]))
        counts['backbone'] += before - len(outputs)
    return counts


class _Driver:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self):
        return -1  # the number of the CPU

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', 90, 32)


class _Kernel:
    """A compiled kernel whose launch ends before the driver is called."""

    function, packed_metadata = 0, ()

    def launch_metadata(self, *args):
        return None

    def run(self, *args):
        pass


class _Compiled(dict):
    """Triton's cache, which has every kernel."""

    def get(self, key, default=None):
        return self.setdefault(key, _Kernel())


@contextmanager
def launched_up_to_the_driver():
    """Run Triton's launcher on CPU tensors, up to its call of the driver."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from mmconvnextv2.ops.kernels import depthwise, gelu, layer_norm, parameters, residual, response, sums

    driver.set_active(_Driver())
    for module in (depthwise, gelu, layer_norm, parameters, residual, response, sums):
        for kernel in [one for one in vars(module).values() if isinstance(one, JITFunction)]:
            create = kernel.create_binder
            kernel.device_caches = defaultdict(lambda create=create: (_Compiled(), *create()[1:]))
    before, dispatch.INTERPRETED = dispatch.INTERPRETED, True
    try:
        with as_on_cuda():
            yield
    finally:
        dispatch.INTERPRETED = before


def contestants(packed, channels):
    """Return blocks by name, each with a function of its sites or map, and that tensor."""
    from mmpretrain.models.backbones.convnext import ConvNeXtBlock
    from timm.models.convnext import ConvNeXtBlock as TimmBlock

    block, sites, grid, execution = make_block(packed, channels=channels)
    found = {'ours': (block, lambda one: block(one, grid, execution), sites)}
    if not packed:
        features = (
            torch.randn(2, channels, grid.height, grid.width).to(memory_format=torch.channels_last).requires_grad_()
        )
        timm = TimmBlock(channels, use_grn=True, conv_mlp=False, ls_init_value=None, drop_path=0.1).train()
        peer = ConvNeXtBlock(channels, use_grn=True, layer_scale_init_value=0.0, drop_path_rate=0.1).train()
        found |= {'timm': (timm, timm, features), 'mmpretrain': (peer, peer, features)}
    return found


def host_time(rounds=300, channels=16):
    """Return microseconds of the host per forward and backward pass of a block, in turns, by geometry and name."""
    import gc

    torch.set_num_threads(1)
    times = defaultdict(list)
    with launched_up_to_the_driver():
        for packed in (False, True):
            blocks = contestants(packed, channels)
            gc.disable()
            for _ in range(rounds):
                for name, (block, run, given) in blocks.items():
                    given.grad = None
                    block.zero_grad()
                    started = time.thread_time()
                    with torch.autocast('cpu', torch.bfloat16):
                        output = run(given)
                    output.backward(output.detach())
                    times['cells' if packed else 'map', name].append(time.thread_time() - started)
            gc.enable()
    return {key: statistics.median(found[rounds // 10 :]) * 1e6 for key, found in times.items()}


def write():
    """Return the tables in Markdown."""
    from measure import machine, table

    rows = []
    for title, packed in (('map', False), ('visible cells', True)):
        folded, custom = count_block(packed, fold=True)
        unfolded, layers = count_block(packed)[0], count_block(packed, kernels='layers')[0]
        rows.append([title, folded, unfolded, custom, layers])
    header = ['a block on', 'scale folded', 'not folded', 'operators of ours', 'layer by layer']
    text = [HEADER, '## Launches of a block\n', table(header, rows), '\n## Launches of a training step\n']
    parts, rows, limits = ('backbone', 'forward', 'backward', 'optimizer', 'whole'), [], []
    for title, config in RECIPES.items():
        ours = count_step(config, 'ours')
        rows.append([title, 'ours', *(ours[one] for one in parts)])
        for name, upstream in (('mmpretrain', False), ("mmpretrain, upstream's AdamW", True)):
            theirs = count_step(config, 'mmpretrain', upstream)
            rows.append(['', name, *(theirs[one] for one in parts)])
            rows.append(['', 'ours / theirs', *(f'{ours[one] / theirs[one]:.2f}' for one in parts)])
            most, rest = int(SHARE * theirs['whole']), ours['whole'] - ours['backbone']
            limits.append([title, name, theirs['whole'], most, rest, most - rest, ours['backbone']])
    text.append(table(['recipe', 'backbone', 'its passes', 'forward', 'backward', 'AdamW', 'whole'], rows))
    header = [
        'recipe',
        'against',
        'its step',
        '70 % of it',
        'ours outside the backbone',
        'left for the backbone',
        'ours',
    ]
    text += ['\n## What 30 % fewer launches of a step would take\n', table(header, limits), LEFT]
    environment = {**os.environ, 'TRITON_INTERPRET': '0'}
    run = subprocess.run(
        [sys.executable, __file__, '--host'], env=environment, capture_output=True, text=True, check=True
    )
    text += ['\n## Host time of a block\n', machine(torch.device('cpu'), ('torch', 'triton', 'timm', 'mmpretrain')), '']
    return '\n'.join([*text, run.stdout])


def write_host():
    """Return the table of host times in Markdown."""
    from measure import table

    times = host_time()
    reference = times['map', 'timm']
    rows = [[*key, f'{value:.0f}', f'{value / reference:.2f}'] for key, value in times.items()]
    return table(['sites', 'block', 'us per forward and backward', 'of timm on maps'], rows)


def main():
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='file of the tables')
    parser.add_argument('--host', action='store_true', help='only print the table of host times')
    args = parser.parse_args()
    text = write_host() if args.host else write()
    print(text)
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
