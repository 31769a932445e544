"""Kernels of ``ops.response_mlp_triton``: GELU fused with the operations around it, in one pass over (B, N, D).

A program covers BLOCK channels of ROWS sites of one image, TILE sites at a time. Each program writes one partial sum
over its sites, (B, chunks, D), which kernels.response adds up. Without atomics, runs are reproducible bit for bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import INTERPRETED as IS_INTERPRETED
from ..reductions import statistics_dtype
from .launch import Launch, sized
from .sums import cdiv, next_power_of_2

INTERPRETED = tl.constexpr(IS_INTERPRETED)
TILE, BLOCK = 32, 64  # sites per step, channels per program
MOST_ROWS, MOST_CHUNKS = 256, 32  # sites per program, which is exceeded rather than this many partial sums per image


@triton.jit
def fast_exp2(x):
    """Return 2 ** x by one instruction, which rounds to zero below 2 ** -126."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise('ex2.approx.ftz.f32 $0, $1;', '=f,f', [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def fast_reciprocal(x):
    """Return 1 / x by one instruction, to about 1e-7."""
    if INTERPRETED:
        return 1 / x
    else:
        return tl.inline_asm_elementwise('rcp.approx.ftz.f32 $0, $1;', '=f,f', [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def normal_of(h, HALF: tl.constexpr):
    """Return the normal distribution function of h, and exp(-h * h / 2).

    If the values were rounded to half precision, erf is that of Abramowitz and Stegun, formula 7.1.26, whose error is
    at most 1.5e-7; it takes a third of the instructions.
    """
    if HALF:
        bell = fast_exp2(-0.7213475204444817 * h * h)  # log2(e) / 2
        t = fast_reciprocal(1 + 0.23164189 * tl.abs(h))  # 0.3275911 / sqrt(2)
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        tail = 0.5 * series * bell
        return tl.where(h > 0, 1 - tail, tail), bell
    else:
        return 0.5 * (1 + tl.math.erf(h * 0.7071067811865476)), tl.exp(-0.5 * h * h)  # 1 / sqrt(2)


@triton.jit
def gelu_of(h, HALF: tl.constexpr):
    distribution, bell = normal_of(h, HALF)
    return h * distribution


@triton.jit
def first_row(num_sites, ROWS: tl.constexpr):
    """Return the program's first row of (B * N, D); it may exceed int32 when multiplied by D."""
    return tl.program_id(1).to(tl.int64) * num_sites + tl.program_id(0) * ROWS


@triton.jit
def find_tile(step, num_sites, channels, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Return a tile's rows from the program's first one on, (TILE, 1), and whether they are sites; the same for its
    elements, (TILE, BLOCK)."""
    row = (step * TILE + tl.arange(0, TILE))[:, None]
    channel = (tl.program_id(2) * BLOCK + tl.arange(0, BLOCK))[None]
    is_site = tl.program_id(0) * ROWS + row < num_sites
    return row, is_site, row * channels + channel, is_site & (channel < channels)


@triton.jit
def load_vector(vector, channels, BLOCK: tl.constexpr):
    """Load the values of the program's image and channels from a vector (B, 1, D)."""
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    return tl.load(vector + tl.program_id(1) * channels + channel, mask=channel < channels, other=0.0)[None]


@triton.jit
def store_partial(total, partial, channels, BLOCK: tl.constexpr):
    """Store the sum over a program's sites at its position in (B, chunks, D)."""
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + chunk * channels + channel, tl.sum(total, 0), mask=channel < channels)


@triton.jit
def norm_kernel(
    h,
    site_mask,
    activation,
    partial,
    num_sites,
    channels,
    COUNTED: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = partial.dtype.element_ty
    HALF: tl.constexpr = h.dtype.element_ty != ACC
    first = first_row(num_sites, ROWS)
    h += first * channels
    if KEEP:
        activation += first * channels
    if COUNTED:
        site_mask += first
    total = tl.zeros((TILE, BLOCK), ACC)
    for step in range(ROWS // TILE):
        row, is_site, offsets, mask = find_tile(step, num_sites, channels, ROWS, TILE, BLOCK)
        # gelu(0) = 0, so values beyond the last site or channel add nothing to the sum
        a = gelu_of(tl.load(h + offsets, mask=mask, other=0.0).to(ACC), HALF).to(h.dtype.element_ty)
        if KEEP:
            tl.store(activation + offsets, a, mask=mask)
        if COUNTED:
            a = tl.where(tl.load(site_mask + row, mask=is_site, other=0), a, 0.0)
        total += a.to(ACC) * a.to(ACC)
    store_partial(total, partial, channels, BLOCK)


@triton.jit
def scaled_kernel(
    h,
    scale,
    beta,
    grad,
    output,
    grad_partial,
    partial,
    num_sites,
    channels,
    GRADIENT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = partial.dtype.element_ty
    HALF: tl.constexpr = h.dtype.element_ty != ACC
    s = load_vector(scale, channels, BLOCK).to(ACC)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    b = tl.load(beta + channel, mask=channel < channels, other=0.0).to(ACC)[None]
    first = first_row(num_sites, ROWS) * channels
    h += first
    output += first
    if GRADIENT:
        grad += first
    total = tl.zeros((TILE, BLOCK), ACC)
    grad_total = tl.zeros((TILE, BLOCK), ACC)
    for step in range(ROWS // TILE):
        row, is_site, offsets, mask = find_tile(step, num_sites, channels, ROWS, TILE, BLOCK)
        a = gelu_of(tl.load(h + offsets, mask=mask, other=0.0).to(ACC), HALF)
        tl.store(output + offsets, (a * s + b).to(output.dtype.element_ty), mask=mask)
        if GRADIENT:
            through = tl.load(grad + offsets, mask=mask, other=0.0).to(ACC)
            total += a * through
            grad_total += through
    if GRADIENT:
        store_partial(total, partial, channels, BLOCK)
        store_partial(grad_total, grad_partial, channels, BLOCK)


@triton.jit
def gradient_kernel(
    h,
    site_mask,
    scale,
    factor,
    grad,
    partial,
    num_sites,
    channels,
    COUNTED: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = partial.dtype.element_ty
    HALF: tl.constexpr = h.dtype.element_ty != ACC
    first = first_row(num_sites, ROWS)
    h += first * channels
    grad += first * channels
    if COUNTED:
        site_mask += first
    f = load_vector(factor, channels, BLOCK).to(ACC)
    if SCALED:
        s = load_vector(scale, channels, BLOCK).to(ACC)
    total = tl.zeros((TILE, BLOCK), ACC)
    for step in range(ROWS // TILE):
        row, is_site, offsets, mask = find_tile(step, num_sites, channels, ROWS, TILE, BLOCK)
        values = tl.load(h + offsets, mask=mask, other=0.0).to(ACC)
        distribution, bell = normal_of(values, HALF)
        through_norm = values * distribution * f  # f = dG / G, see ops.response_mlp
        if COUNTED:  # sites that do not count are not part of the norm, hence have no gradient through it
            shown = tl.load(site_mask + row, mask=is_site, other=0)
            through_norm = tl.where(shown, through_norm, 0.0)
        through_product = tl.load(grad + offsets, mask=mask, other=0.0).to(ACC)
        if SCALED:
            through_product *= s
        slope = distribution + values * (0.3989422804014327 * bell)  # 1 / sqrt(2 pi)
        grad_h = (through_product + through_norm) * slope
        tl.store(grad + offsets, grad_h.to(grad.dtype.element_ty), mask=mask)
        total += grad_h
    store_partial(total, partial, channels, BLOCK)


def norm(h: Tensor, site_mask: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    """Return a (empty unless ``keep``), and partial sums (B, chunks, D) of its squares over the sites that count."""
    activation = torch.empty_like(h) if keep else h.new_empty(0)
    flags = dict(COUNTED=site_mask is not None, KEEP=keep)
    return activation, launch_pass(norm_kernel, h, statistics_dtype(h.dtype), site_mask, activation, **flags)


def scaled(h: Tensor, scale: Tensor, beta: Tensor) -> Tensor:
    """Return a * s + beta, with s (B, 1, D) and beta (D, )."""
    output = torch.empty_like(h)
    launch_pass(scaled_kernel, h, statistics_dtype(h.dtype), scale, beta, None, output, None, GRADIENT=False)
    return output


def scaled_with_gradient(h: Tensor, scale: Tensor, beta: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a * s + beta, and partial sums (B, chunks, D) of the gradients of s and of beta, given that of the
    result."""
    output = torch.empty_like(h)
    kind = statistics_dtype(h.dtype)
    of_beta = new_partial(scaled_kernel, h, kind, GRADIENT=True)
    return output, launch_pass(scaled_kernel, h, kind, scale, beta, grad, output, of_beta, GRADIENT=True), of_beta


def gradient(h: Tensor, site_mask: Tensor | None, scale: Tensor | None, factor: Tensor, grad: Tensor) -> Tensor:
    """Overwrite ``grad``, the gradient of a * s (of a if ``scale`` is None), with the gradient of h.

    It is gelu'(h) * (grad * s + a * f), where a * f counts as 0 at sites outside of the mask.

    Returns:
        Tensor: Partial sums (B, chunks, D) of the gradient of h.
    """
    flags = dict(COUNTED=site_mask is not None, SCALED=scale is not None)
    return launch_pass(gradient_kernel, h, statistics_dtype(h.dtype), site_mask, scale, factor, grad, **flags)


def launch_pass(kernel: Any, h: Tensor, kind: torch.dtype, *tensors: Tensor | None, **flags: bool) -> Tensor:
    """Run a kernel on all of h (B, N, D) and return its partial sums (B, chunks, D) in a dtype."""
    partial = new_partial(kernel, h, kind, **flags)
    _pass(kernel, *h.shape, **flags)(h, *tensors, partial)
    return partial


def new_partial(kernel: Any, h: Tensor, kind: torch.dtype, **flags: bool) -> Tensor:
    """Return memory for a kernel's partial sums (B, chunks, D) over all of h (B, N, D)."""
    batch, num_sites, channels = h.shape
    return h.new_empty(batch, _pass(kernel, batch, num_sites, channels, **flags).grid[0], channels, dtype=kind)


@sized
def _pass(kernel: Any, batch: int, num_sites: int, channels: int, **flags: bool) -> Launch:
    # Powers of two times TILE, so few values of the compile-time constant ROWS occur; few partial sums for large images
    rows, most = (TILE * next_power_of_2(cdiv(num_sites, TILE * count)) for count in (1, MOST_CHUNKS))
    rows = min(rows, max(MOST_ROWS, most))
    grid, constants = (cdiv(num_sites, rows), batch, cdiv(channels, BLOCK)), dict(ROWS=rows, TILE=TILE, BLOCK=BLOCK)
    return Launch(kernel, grid, (num_sites, channels), **flags, **constants)
