"""What the Triton kernels cost, read from machine code; no GPU is needed.

    python benchmarks/kernels.py --out benchmarks/kernels.md            # three architectures, all widths
    python benchmarks/kernels.py --cc 90 --widths 128 256

Each kernel is compiled as a training in bfloat16 launches it. The table that results explains its columns.
"""

import argparse
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmconvnextv2.models.convnext_v2 import ARCHS
from mmconvnextv2.ops import depthwise_triton  # noqa: F401  (defines the operators that the kernels count for)
from mmconvnextv2.ops.grid import SLOT_BORDER, cell_slots
from mmconvnextv2.ops.kernels import depthwise, gelu, layer_norm, parameters, residual, response

TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
TYPES = dict(cells='*i32', slots='*i32', lists='*i32', eps='fp32')
TYPES |= dict.fromkeys(('height', 'width', 'count', 'num_sites'), 'i32')
TYPES |= dict(site_mask='*i1')
TYPES |= dict.fromkeys(('channels', 'hidden', 'elements', 'chunks', 'batch', 'rows'), 'i32')
TYPES |= dict.fromkeys(('first_count', 'second_count', 'third_count'), 'i32')
TYPES |= dict.fromkeys(('taps', 'bias', 'norm_weight', 'norm_bias', 'mean', 'rstd', 'partial', 'weight'), '*fp32')
TYPES |= dict.fromkeys(('residual', 'weight1', 'bias1', 'weight2', 'bias2', 'kept', 'grad_partial'), '*fp32')
TYPES |= dict.fromkeys(('scale', 'factor', 'norm', 'gamma', 'beta', 'grad_gamma', 'grad_bias'), '*fp32')
TYPES |= dict.fromkeys(('first', 'second', 'third', 'first_sum', 'second_sum', 'third_sum', 'grad_weight'), '*fp32')
HIDDEN = 64 * 196 * 2048  # elements of the hidden features of Base's third stage at batch 64 and 224 pixels
SIDE, BATCH, IMAGE, MASK_RATIO = 7, 64, 224, 0.6
BANDWIDTH, ISSUES = 3.35e12, 132 * 4 * 1.755e9  # of an H100 SXM: bytes, and instructions of 32 lanes, per second
REGISTERS, THREADS = 65536, 2048  # per multiprocessor


HEADER = """# Kernels, without a GPU

What the Triton kernels cost, read from their machine code (`python benchmarks/kernels.py`). Nothing here was measured
on a GPU.

- *C*, *stride*: channels and stride of the stages of the sizes. *sites*: whole maps at batch 64 and 224 pixels, or the
  visible cells of FCMAE at a mask ratio of 0.6.
- *registers* and *spilled* bytes per thread; *occupancy*: the share of a multiprocessor's 2,048 threads that registers
  allow.
- *instructions* per tap and element in bfloat16, where one multiply-add is the least; of the norm and its gradient, per
  element. *bytes*: the fewest per element. Where a cell is one site (stride 32), convolutions go through lists of
  visible neighbours, whose lengths are those of random masks; masked taps are counted, but cost nothing.
- *memory*: the time that the fewest bytes take at 3.35 TB/s; *issue*: the time that the instructions take at one per
  cycle and scheduler (132 multiprocessors with 4 schedulers at 1.755 GHz). Both are lower bounds for an H100. At these
  shapes instructions, not bytes, bound the convolutions, and tensor cores, whose 989 TFLOP/s
  bound matrix products, do not serve them. Passes over hidden features are those of Base's third stage at batch 64.

"""


class Case(NamedTuple):
    """A kernel, its compile-time constants, and what they mean.

    Attributes:
        title (str): What it computes.
        kernel (Callable): The Triton kernel.
        constants (dict): Its compile-time arguments.
        per_loop (float): Results of a tap per thread and iteration of the kernel's loop.
        iterations (float, optional): Iterations of that loop that one program executes; 0 if there are arbitrarily
            many. None for kernels without a loop.
        bytes (int): Fewest bytes moved per element.
        warps (int): Warps per program.
        registers (int, optional): Most registers per thread, if there is a limit.
    """

    title: str
    kernel: object
    constants: dict
    per_loop: float
    iterations: float | None
    bytes: int
    warps: int = depthwise.WARPS
    registers: int | None = None


class Cost(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers (int): Registers per thread.
        spilled (int): Bytes of stack per thread.
        occupancy (float): Share of a multiprocessor's threads that the registers allow.
        instructions (float): Instructions per tap and element.
        vectors (bool): Whether all wide loads and stores of half precision move at least 8 bytes.
    """

    registers: int
    spilled: int
    occupancy: float
    instructions: float
    vectors: bool


def compile_kernel(case: Case, capability: int, dtype: str = 'bf16') -> tuple[str, str]:
    """Return a kernel's machine code, disassembled, and its use of resources, without a GPU."""
    kernel, constants = case.kernel, case.constants
    types = {name: 'constexpr' if name in constants else TYPES.get(name, f'*{dtype}') for name in kernel.arg_names}
    pointers = {  # and counts of channels and of elements, which Triton finds divisible at run time
        (place,): [['tt.divisibility', 16]]
        for place, (name, kind) in enumerate(types.items())
        if kind[0] == '*' or kind == 'i32' and name in ('channels', 'hidden', 'elements')
    }
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(
        ASTSource(kernel, types, constants, pointers),
        target=GPUTarget('cuda', capability, 32),
        options=dict(num_warps=case.warps, maxnreg=case.registers),
    )
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        code = subprocess.run([TOOLS / 'nvdisasm', file.name], capture_output=True, text=True, check=True)
        usage = subprocess.run(
            [TOOLS / 'cuobjdump', '-res-usage', file.name], capture_output=True, text=True, check=True
        )
    return code.stdout, usage.stdout


def count_instructions(code: str) -> tuple[int, int]:
    """Return how many instructions are outside of the longest loop, and how many inside."""
    labels, jumps, count = {}, [], 0
    for line in code.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = count
        if instruction := re.search(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)(.*)', line):
            if instruction[1].startswith('BRA') and (target := re.search(r'\.L_x_\d+', instruction[2])):
                jumps.append((count, target[0]))
            count += 1
    inside = max(
        (place + 1 - labels[target] for place, target in jumps if labels.get(target, count) < place), default=0
    )
    return count - inside, inside


def cost_of(case: Case, capability: int = 90, dtype: str = 'bf16') -> Cost:
    """Compile a kernel and return what it takes."""
    code, usage = compile_kernel(case, capability, dtype)
    registers, stack = (int(value) for value in re.search(r'REG:(\d+) STACK:(\d+)', usage).groups())
    outside, inside = count_instructions(code)
    if case.iterations is None:
        total, results = outside + inside, 1
    elif case.iterations == 0:
        total, results = inside, 1
    else:
        total, results = outside + case.iterations * inside, case.iterations
    warps = REGISTERS // (-(-registers // 8) * 8 * 32) // case.warps * case.warps
    return Cost(
        registers,
        stack,
        min(warps * 32 / THREADS, 1.0),
        total / (results * case.per_loop),
        not re.search(r'(LDG|STG)\.E\.U?(8|16)', code),
    )


def convolution(channels: int, patch: int, mirrored: bool = False) -> Case:
    """Return the convolution of a whole map (``patch`` 0) or of cells, or with the flipped kernel of the gradient."""
    tile = depthwise.tile_of(channels, patch)
    # The gradient of a block's residual is added to that of its input
    constants = dict(tile, SIDE=SIDE, MIRRORED=mirrored, **depthwise.LISTS)
    constants |= (dict(bias=None) if mirrored else dict(residual=None)) | ({} if patch == 1 else dict(lists=None))
    title = 'input gradient' if mirrored else 'convolution'
    iterations = count_iterations(tile['LANES']) if patch == 1 else SIDE
    per_loop = _values(tile) * SIDE**2 / iterations
    return Case(title, depthwise.convolve_kernel, _geometry(constants, patch), per_loop, iterations, 4)


@lru_cache
def count_iterations(lanes: int) -> float:
    """Return how often a program that goes through the lists of neighbours of some cells iterates, on average."""
    random, side = torch.Generator().manual_seed(0), IMAGE // 32
    visible = side * side - int(side * side * MASK_RATIO)
    cells = [torch.randperm(side * side, generator=random)[:visible].sort()[0] for _ in range(BATCH)]
    index, table = cell_slots(torch.stack(cells), side, side)
    reach = torch.arange(-SLOT_BORDER, SLOT_BORDER + 1)
    around = index.view(-1, 1, 1) + reach[:, None] * table.shape[2] + reach
    longest = (table.view(-1)[around] >= 0).sum((1, 2)).view(-1, lanes).amax(1)
    return (longest / depthwise.AT_ONCE).ceil().mean().item()


def weight_gradient(channels: int, patch: int) -> Case:
    """Return the weight's gradient on a whole map or on cells."""
    tile = depthwise.tile_of(channels, patch, gradient=True)
    constants = _geometry(dict(tile, SIDE=SIDE, STEPS=16), patch)
    limit = depthwise.GRADIENT_REGISTERS
    kernel = depthwise.weight_gradient_kernel
    return Case('weight gradient', kernel, constants, _values(tile) * SIDE, 0, 4, registers=limit)


def norm_gradient(channels: int) -> Case:
    """Return LayerNorm's gradients; its instructions are per element."""
    tile, block, warps = layer_norm.tile_of(channels)
    constants = dict(channels=channels, STEPS=16, TILE=tile, BLOCK=block)
    return Case('norm gradient', layer_norm.backward_kernel, constants, tile * block / (warps * 32), 0, 6, warps)


def norm(channels: int) -> Case:
    """Return LayerNorm; its instructions are per element."""
    tile, block, warps = layer_norm.tile_of(channels)
    constants = dict(channels=channels, KEEP=True, TILE=tile, BLOCK=block)
    return Case('norm', layer_norm.forward_kernel, constants, tile * block / (warps * 32), None, 4, warps)


def hidden_passes() -> list[Case]:
    """Return the passes over hidden features; their instructions are per element."""
    sizes = dict(ROWS=4 * gelu.TILE, TILE=gelu.TILE, BLOCK=gelu.BLOCK)
    each = gelu.TILE * gelu.BLOCK / 128
    unmasked = dict(site_mask=None, COUNTED=False)
    return [
        Case('GELU and its norm', gelu.norm_kernel, dict(sizes, **unmasked, KEEP=False), each, 4, 2),
        Case('the same, kept', gelu.norm_kernel, dict(sizes, **unmasked, KEEP=True), each, 4, 4),
        Case('GELU, scaled', gelu.scaled_kernel, dict(sizes, grad=None, grad_partial=None, GRADIENT=False), each, 4, 4),
        Case('the same, with gradients of scales and beta', gelu.scaled_kernel, dict(sizes, GRADIENT=True), each, 4, 6),
        Case('gradient of GELU and norm', gelu.gradient_kernel, dict(sizes, **unmasked, SCALED=True), each, 4, 6),
    ]


def small_kernels() -> list[Case]:
    """Return the kernels of GRN's response, of sums and of parameters, whose tensors are small, and of the residual."""
    sums = dict(STEPS=2, TILE=32, BLOCK=response.BLOCK)
    sizes = dict(ROWS=4 * gelu.TILE, TILE=gelu.TILE, BLOCK=gelu.BLOCK)
    layout = dict(TAPS=SIDE**2, SIZE=parameters.SIZE)
    return [
        Case('response', response.response_kernel, dict(sums, BLOCKS=4), 1, None, 0),
        Case('gradient of the response', response.response_backward_kernel, dict(sums, BLOCKS=4), 1, None, 0),
        Case('folded product', response.product_kernel, dict(response.PRODUCT, STEPS=8), 1, None, 0),
        Case('sums', response.sum_kernel, sums, 1, None, 0),
        Case('layout of parameters', parameters.lay_out_kernel, layout, 1, None, 0),
        Case(
            'lists of neighbours',
            depthwise.list_kernel,
            depthwise.LISTING,
            1,
            None,
            0,
        ),
        Case('residual sum', residual.add_kernel, dict(ACC=tl.float32, SIZE=residual.SIZE), 1, None, 0),
        Case("gradient of a block's branch", residual.branch_gradient_kernel, sizes, 1, None, 0),
    ]


def _geometry(constants: dict, patch: int) -> dict:
    return constants if patch else constants | dict(cells=None, slots=None)


def _values(tile: dict) -> float:
    """Return how many results a thread computes."""
    return tile['LANES'] * tile['STRIP'] * tile['BLOCK'] / (depthwise.WARPS * 32)


def cases_of(channels: int, stride: int) -> list[tuple[str, Case]]:
    """Return all kernels of a stage, each with its geometry in words."""
    found = []
    for geometry, patch in (('map', 0), ('cells', 32 // stride)):
        found.append((geometry, convolution(channels, patch)))
        found.append((geometry, convolution(channels, patch, mirrored=True)))
        found.append((geometry, weight_gradient(channels, patch)))
    return [*found, ('both', norm(channels)), ('both', norm_gradient(channels))]


def stages(widths: list[int] | None) -> list[tuple[int, int]]:
    """Return all pairs of channels and stride that the sizes have."""
    pairs = {(width, 4 * 2**stage) for arch in ARCHS.values() for stage, width in enumerate(arch['channels'])}
    return sorted(pair for pair in pairs if not widths or pair[0] in widths)


def write_table(capability: int, widths: list[int] | None) -> str:
    """Return the table of one compute capability in Markdown."""
    lines = [
        f'## Compute capability {capability / 10}',
        '',
        '| C | stride | kernel | sites | registers | spilled | occupancy | instructions | memory, us | issue, us |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for channels, stride in stages(widths):
        for geometry, case in cases_of(channels, stride):
            cost = cost_of(case, capability)
            cells = (IMAGE // 32) ** 2
            cells = cells - int(cells * MASK_RATIO) if geometry == 'cells' else cells
            elements = BATCH * cells * (32 // stride) ** 2 * channels
            taps = 1 if case.title.startswith('norm') else SIDE**2
            memory, issue = case.bytes * elements / BANDWIDTH, cost.instructions * taps * elements / 32 / ISSUES
            lines.append(
                f'| {channels} | {stride} | {case.title} | {geometry} | {cost.registers} | {cost.spilled} | '
                f'{cost.occupancy:.0%} | {cost.instructions:.2f} | {memory * 1e6:.1f} | {issue * 1e6:.1f} |'
            )
            print(lines[-1], flush=True)
    lines += [
        '',
        '| hidden features | registers | spilled | occupancy | instructions | bytes | memory, us | issue, us |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for case in hidden_passes():
        cost = cost_of(case, capability)
        memory, issue = case.bytes * HIDDEN / BANDWIDTH, cost.instructions * HIDDEN / 32 / ISSUES
        lines.append(
            f'| {case.title} | {cost.registers} | {cost.spilled} | {cost.occupancy:.0%} | {cost.instructions:.1f} | '
            f'{case.bytes} | {memory * 1e6:.1f} | {issue * 1e6:.1f} |'
        )
    lines += ['', '| small kernels | registers | spilled | occupancy |', '|---|---|---|---|']
    for case in small_kernels():
        cost = cost_of(case, capability)
        lines.append(f'| {case.title} | {cost.registers} | {cost.spilled} | {cost.occupancy:.0%} |')
    return '\n'.join(lines)


def main() -> None:
    """Compile all kernels and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cc', type=int, nargs='+', default=[80, 90, 100], help='compute capabilities, times ten')
    parser.add_argument('--widths', type=int, nargs='+', help='channels; all widths of the sizes if absent')
    parser.add_argument('--out', type=Path, help='file of the table')
    args = parser.parse_args()
    tables = [write_table(capability, args.widths) for capability in args.cc]
    if args.out:
        args.out.write_text(HEADER + '\n\n'.join(tables) + '\n')


if __name__ == '__main__':
    main()
