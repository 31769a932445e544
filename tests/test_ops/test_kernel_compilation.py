"""Triton's compiler takes every kernel, down to machine code of a GPU, which needs none; those of the depthwise layer
are as lean as machine code shows."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

triton = pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
ASTSource, GPUTarget = triton.compiler.ASTSource, import_module('triton.backends.compiler').GPUTarget

TYPES = dict(site_mask='*i1', eps='fp32')
TYPES |= dict.fromkeys(('num_sites', 'channels', 'chunks', 'batch', 'rows', 'hidden', 'elements'), 'i32')
TYPES |= dict.fromkeys(('first_count', 'second_count', 'third_count'), 'i32')
TYPES |= dict.fromkeys(('partial', 'factor', 'norm', 'grad_gamma', 'first', 'second', 'third', 'grad_partial'), '*fp32')
TYPES |= dict.fromkeys(('weight1', 'bias1', 'weight2', 'bias2', 'taps'), '*fp32')
SUMS = dict(STEPS=2, TILE=32, BLOCK=128)
PASSES = dict(ROWS=64, TILE=32, BLOCK=64)
CASES = [
    ('gelu', 'norm_kernel', dict(COUNTED=True, KEEP=True, **PASSES)),
    ('gelu', 'norm_kernel', dict(site_mask=None, COUNTED=False, KEEP=False, **PASSES)),
    ('gelu', 'scaled_kernel', dict(grad=None, grad_partial=None, GRADIENT=False, **PASSES)),
    ('gelu', 'scaled_kernel', dict(GRADIENT=True, **PASSES)),
    ('gelu', 'gradient_kernel', dict(COUNTED=True, SCALED=True, **PASSES)),
    ('response', 'response_kernel', dict(BLOCKS=4, **SUMS)),
    ('response', 'response_backward_kernel', dict(BLOCKS=4, **SUMS)),
    ('response', 'product_kernel', dict(STEPS=8, IMAGES=8, ROWS=16, BLOCK=32)),
    ('response', 'sum_kernel', SUMS),
    ('parameters', 'lay_out_kernel', dict(TAPS=49, SIZE=1024)),
    ('residual', 'branch_gradient_kernel', PASSES),
    ('residual', 'branch_gradient_kernel', dict(kept=None, **PASSES)),
    ('residual', 'add_kernel', dict(ACC=triton.language.float32, SIZE=1024)),
    ('gelu', 'gradient_kernel', dict(site_mask=None, scale=None, COUNTED=False, SCALED=False, **PASSES)),
]


@pytest.mark.parametrize('module, name, constants', CASES)
def test_compiles(module, name, constants, tmp_path, monkeypatch):
    """A kernel in bfloat16 becomes machine code of compute capability 8.0 whose wide loads are vectors."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernel = getattr(import_module(f'mmconvnextv2.ops.kernels.{module}'), name)
    types = {
        argument: 'constexpr' if argument in constants else TYPES.get(argument, '*bf16')
        for argument in kernel.arg_names
    }
    divisible = [
        place
        for place, argument in enumerate(kernel.arg_names)
        if argument in ('channels', 'hidden', 'elements') or types[argument].startswith('*')
    ]
    source = ASTSource(
        kernel,
        types,
        {(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
        {(place,): [['tt.divisibility', 16]] for place in divisible},
    )
    compiled = triton.compile(source, target=GPUTarget('cuda', 80, 32), options=dict(num_warps=4))
    assert compiled.asm['cubin'] and 'ld.global.v' in compiled.asm['ptx']


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'benchmarks'))
    yield import_module('kernels')
    sys.modules.pop('kernels')


def test_passes_over_hidden_features_are_lean(kernels):
    """In bfloat16 on compute capability 9.0: at most 30 instructions per element, no spills, a quarter of the threads
    at once, and vectors. Small kernels do not spill either."""
    for case in kernels.hidden_passes():
        cost = kernels.cost_of(case)
        assert cost.instructions <= 30 and not cost.spilled and cost.occupancy >= 0.25 and cost.vectors, (case, cost)
    assert not any(kernels.cost_of(case).spilled for case in kernels.small_kernels())


# Channels of Atto, Tiny and Base; whole maps (0) and cells of several sizes
@pytest.mark.parametrize(
    'channels, patch', [(40, 0), (96, 0), (128, 0), (128, 8), (256, 4), (192, 4), (320, 1), (1024, 1)]
)
def test_depthwise_is_lean(kernels, channels, patch):
    """In bfloat16 on compute capability 9.0: at most 2.5 instructions per tap and element on maps and 3 on cells, 4 for
    the weight's gradient, no spills, a quarter of the threads at once, and vectors at any width."""
    bound = 3 if patch else 2.5
    cases = [
        (kernels.convolution(channels, patch), bound),
        (kernels.convolution(channels, patch, mirrored=True), bound),
        (kernels.weight_gradient(channels, patch), 4),
        (kernels.norm(channels), 40),
        (kernels.norm_gradient(channels), 40),
    ]
    for case, most in cases:
        cost = kernels.cost_of(case)
        assert cost.instructions <= most and not cost.spilled and cost.occupancy >= 0.25 and cost.vectors, (case, cost)
