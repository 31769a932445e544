"""Triton's compiler takes every kernel, down to machine code of a GPU, which needs none."""

from importlib import import_module

import pytest

triton = pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
ASTSource, GPUTarget = triton.compiler.ASTSource, import_module('triton.backends.compiler').GPUTarget

SCALARS = {
    'num_sites': 'i32',
    'channels': 'i32',
    'height': 'i32',
    'width': 'i32',
    'num_cells': 'i32',
    'batch': 'i32',
    'eps': 'fp32',
}
POINTERS = {'site_mask': '*i1', 'cells': '*i64', 'slots': '*i32'}
FLOAT32 = ('partial', 'mean', 'rstd', 'factor', 'norm_weight', 'norm_bias')
PASSES = dict(ROWS=64, TILE=32, BLOCK=64)
WHOLE_MAP = dict(cells=None, slots=None, PATCH=0, SIDE=7, HEIGHT=4, WIDTH=4)
VISIBLE = dict(PATCH=4, SIDE=7, HEIGHT=4, WIDTH=4)
NO_NORM = dict(norm_weight=None, norm_bias=None, normed=None, bias=None, BIAS=False, NORM=False, KEEP=True)
CONVOLUTION = dict(ACC=triton.language.float32, BLOCK=64)
CASES = [
    ('gelu', 'norm_kernel', dict(COUNTED=True, KEEP=True, **PASSES)),
    ('gelu', 'norm_kernel', dict(site_mask=None, COUNTED=False, KEEP=False, **PASSES)),
    ('gelu', 'scaled_kernel', dict(grad=None, GRADIENT=False, **PASSES)),
    ('gelu', 'scaled_kernel', dict(GRADIENT=True, **PASSES)),
    ('gelu', 'gradient_kernel', dict(COUNTED=True, SCALED=True, **PASSES)),
    ('gelu', 'gradient_kernel', dict(site_mask=None, scale=None, COUNTED=False, SCALED=False, **PASSES)),
    ('layer_norm', 'layer_norm_kernel', dict(STEPS=2, TILE=16, BLOCK=64)),
    ('depthwise', 'convolve_kernel', dict(MIRRORED=False, BIAS=True, NORM=True, KEEP=True, **WHOLE_MAP, **CONVOLUTION)),
    ('depthwise', 'convolve_kernel', dict(MIRRORED=False, BIAS=True, NORM=True, KEEP=False, **VISIBLE, **CONVOLUTION)),
    ('depthwise', 'convolve_kernel', dict(MIRRORED=True, **NO_NORM, **WHOLE_MAP, **CONVOLUTION)),
    ('depthwise', 'convolve_kernel', dict(MIRRORED=True, **NO_NORM, **VISIBLE, **CONVOLUTION)),
    ('depthwise', 'gradient_kernel', dict(LANES=8, STEPS=2, BLOCK=32, **WHOLE_MAP)),
    ('depthwise', 'gradient_kernel', dict(LANES=8, STEPS=2, BLOCK=32, **VISIBLE)),
]


@pytest.mark.parametrize('module, name, constants', CASES)
def test_compiles(module, name, constants, tmp_path, monkeypatch):
    """A kernel in bfloat16 becomes machine code of compute capability 8.0 whose wide loads are vectors."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernel = getattr(import_module(f'mmconvnextv2.ops.kernels.{module}'), name)
    types = {
        argument: 'constexpr'
        if argument in constants
        else SCALARS.get(argument) or POINTERS.get(argument, '*fp32' if argument in FLOAT32 else '*bf16')
        for argument in kernel.arg_names
    }
    divisible = [
        place
        for place, argument in enumerate(kernel.arg_names)
        if argument == 'channels' or types[argument].startswith('*')
    ]
    source = ASTSource(
        kernel,
        types,
        {(kernel.arg_names.index(argument),): value for argument, value in constants.items()},
        {(place,): [['tt.divisibility', 16]] for place in divisible},
    )
    compiled = triton.compile(source, target=GPUTarget('cuda', 80, 32), options=dict(num_warps=4))
    assert compiled.asm['cubin'] and 'ld.global.v' in compiled.asm['ptx']
