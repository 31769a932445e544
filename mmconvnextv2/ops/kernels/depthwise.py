"""Kernels of ``ops.depthwise_triton``: depthwise convolution over sites (B, N, C) of a whole map or of visible cells.

A lane is a strip of STRIP neighbouring sites in one row. For each row of the kernel it loads STRIP + SIDE - 1 sites,
once, and each of them serves all outputs of the strip that it reaches. One source serves both geometries: only
``find_strips`` and ``find_neighbours`` know them. On visible cells strips are rows of a cell, so where a neighbour is
inside its own cell is known at compile time, and ``grid.cell_slots`` is read once per row and cell. Where a cell is one
site, most neighbours are masked or outside of the image, and the convolution only goes through lists of the others,
which are made once per step. Taps, the kernel's weights, have the layout (k * k, C), and they and sums are float32, or
float64 for float64 inputs.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..dispatch import INTERPRETED as IS_INTERPRETED
from ..grid import LIST_LENGTH, SLOT_BORDER
from ..reductions import statistics_dtype
from .launch import Launch, sized
from .sums import cdiv, next_power_of_2, steps_of, sum_chunks

INTERPRETED, BORDER = tl.constexpr(IS_INTERPRETED), tl.constexpr(SLOT_BORDER)
STRIP = 4  # sites per strip of a whole map; on cells of 1, 2, 4 or 8 sites a side, strips are rows of a cell
WARPS = 4  # per program
AT_ONCE = 4  # neighbours of a list per iteration, whose loads do not wait for each other
LISTS = dict(AT_ONCE=AT_ONCE, LENGTH=LIST_LENGTH)
LISTING = dict(SIDE=2 * SLOT_BORDER + 1, LENGTH=LIST_LENGTH, LANES=128)  # lists per program that makes them
PER_THREAD = 8  # values per thread and output of a strip, one load of 16 bytes in half precision
BLOCK = 64  # most channels per program
GRADIENT_PROGRAMS = 2048  # most programs of the weight's gradient
GRADIENT_REGISTERS = 128  # most per thread of that kernel, so that a quarter of a GPU's threads run at once


@triton.jit
def find_strips(tile, cells, height, width, count, PATCH: tl.constexpr, STRIP: tl.constexpr, LANES: tl.constexpr):
    """Return row and first column of a tile's strips, the index in (B * N) of their first site, the position of their
    cell in the table of slots, and whether they exist; each (LANES, ). ``count`` is the number of images, or of cells.
    """
    strip = tile * LANES + tl.arange(0, LANES)
    if PATCH == 0:
        across = tl.cdiv(width, STRIP)
        line = strip // across
        y, x = line % height, strip % across * STRIP
        return y, x, line.to(tl.int64) * width + x, strip, line < height * count  # large batches exceed int32
    else:
        exists = strip < count * PATCH
        position = tl.load(cells + strip // PATCH, mask=exists, other=0)
        return strip % PATCH, strip * 0, strip.to(tl.int64) * STRIP, position, exists


@triton.jit
def find_neighbours(y, place, position, exists, slots, down, height, width, PATCH: tl.constexpr, RADIUS: tl.constexpr):
    """Locate the strips' neighbours ``down`` rows below, for each cell that they may be in, from left to right.

    Returns the index in (B * N) of the cell's first site in that row, and whether the cell is there; tuples of
    (LANES, ). A whole map counts as one cell, and the index is that of the site below the strip's first one.
    """
    if PATCH == 0:
        row = y + down
        return (place + down * width,), (exists & (row >= 0) & (row < height),)
    else:
        row = y + down + BORDER * PATCH  # not negative
        line = position + (row // PATCH - BORDER) * (width // PATCH + 2 * BORDER)
        starts, shown = (), ()
        for index in tl.static_range(2 * ((RADIUS + PATCH - 1) // PATCH) + 1):
            column = index - (RADIUS + PATCH - 1) // PATCH
            slot = tl.load(slots + line + column, mask=exists, other=-1)
            start = slot.to(tl.int64) * (PATCH * PATCH) + row % PATCH * PATCH
            starts, shown = starts + (start,), shown + (slot >= 0,)
        return starts, shown


@triton.jit
def widen(values, ACC: tl.constexpr):
    """Convert values to the dtype of sums; pairs of bfloat16, the upper halves of float32, by one instruction each."""
    if INTERPRETED or values.dtype != tl.bfloat16 or ACC != tl.float32:
        return values.to(ACC)
    else:
        return tl.inline_asm_elementwise(
            'shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;', '=r,=r,r', [values], tl.float32, is_pure=True, pack=2
        )


@triton.jit
def load_neighbours(
    sites, starts, shown, step, x, width, channel, is_channel, CHANNELS: tl.constexpr, PATCH: tl.constexpr,
    RADIUS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Load the neighbours that are ``step - RADIUS`` columns to the right of each strip's first site; missing ones read
    as zero."""
    if PATCH == 0:
        mask = shown[0] & (x + (step - RADIUS) >= 0) & (x + (step - RADIUS) < width)
        site = sites + channel[None] + starts[0][:, None] * CHANNELS + (step - RADIUS) * CHANNELS
    else:
        BEFORE: tl.constexpr = (RADIUS + PATCH - 1) // PATCH
        INDEX: tl.constexpr = (step - RADIUS + BEFORE * PATCH) // PATCH
        INNER: tl.constexpr = (step - RADIUS + BEFORE * PATCH) % PATCH
        mask = shown[INDEX]
        site = sites + channel[None] + starts[INDEX][:, None] * CHANNELS + INNER * CHANNELS
    return widen(tl.load(site, mask=mask[:, None] & is_channel, other=0.0), ACC)


@triton.jit
def find_channels(CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the program's channels (BLOCK, ), and whether they exist (1, BLOCK), a constant where all do."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS % BLOCK == 0:
        return channel, tl.full((1, BLOCK), True, tl.int1)
    else:
        return channel, (channel < CHANNELS)[None]


@triton.jit
def list_kernel(
    cells, slots, lists, width, count, SIDE: tl.constexpr, LENGTH: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """List the visible neighbours of each cell, 64 * index + tap of each, and in the end how many there are."""
    cell = tl.program_id(0) * LANES + tl.arange(0, LANES)
    exists = cell < count
    position = tl.load(cells + cell, mask=exists, other=0)
    lists += cell.to(tl.int64) * LENGTH
    found = tl.zeros((LANES,), tl.int32)
    for tap in range(SIDE * SIDE):
        around = (tap // SIDE - SIDE // 2) * (width + SIDE - 1) + tap % SIDE - SIDE // 2
        slot = tl.load(slots + position + around, mask=exists, other=-1)
        tl.store(lists + found, slot * 64 + tap, mask=slot >= 0)
        found += (slot >= 0).to(tl.int32)
    tl.store(lists + LENGTH - 1, found, mask=exists)


@triton.jit
def convolve_lists(
    total, sites, taps, lists, place, exists, channel, is_channel,
    CHANNELS: tl.constexpr, SIDE: tl.constexpr, MIRRORED: tl.constexpr, AT_ONCE: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Add the products of all listed neighbours and their taps to ``total`` (LANES, BLOCK)."""
    ACC: tl.constexpr = taps.dtype.element_ty
    lists += place * LENGTH
    found = tl.load(lists + LENGTH - 1, mask=exists, other=0)
    most, first = tl.max(found, 0), 0
    while first < most:
        for index in tl.static_range(AT_ONCE):
            shown = first + index < found
            entry = tl.load(lists + (first + index), mask=shown, other=0)
            tap = entry & 63
            if MIRRORED:
                tap = SIDE * SIDE - 1 - tap
            mask = shown[:, None] & is_channel
            site = sites + channel[None] + (entry >> 6).to(tl.int64)[:, None] * CHANNELS
            # Where there is no neighbour, any tap will do: its value is zero
            factor = tl.load(taps + tap[:, None] * CHANNELS + channel[None], mask=is_channel, other=0.0)
            total += widen(tl.load(site, mask=mask, other=0.0), ACC) * factor
        first += AT_ONCE
    return total


@triton.jit
def convolve_kernel(
    sites, taps, bias, residual, output, cells, slots, lists, height, width, count,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, SIDE: tl.constexpr, MIRRORED: tl.constexpr, STRIP: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = taps.dtype.element_ty
    RADIUS: tl.constexpr = SIDE // 2
    y, x, place, position, exists = find_strips(tl.program_id(0), cells, height, width, count, PATCH, STRIP, LANES)
    channel, is_channel = find_channels(CHANNELS, BLOCK)
    total = tl.zeros((LANES, BLOCK), ACC)
    if bias is not None:
        total += tl.load(bias + channel[None], mask=is_channel, other=0.0).to(ACC)
    totals = (total,) * STRIP
    if lists is not None:
        total = convolve_lists(
            total, sites, taps, lists, place, exists, channel, is_channel, CHANNELS, SIDE, MIRRORED, AT_ONCE, LENGTH
        )
        totals = (total,)
    else:
        for row in range(SIDE):
            starts, shown = find_neighbours(
                y, place, position, exists, slots, row - RADIUS, height, width, PATCH, RADIUS
            )
            line = taps + row * (SIDE * CHANNELS)
            if MIRRORED:
                line = taps + (SIDE - 1 - row) * (SIDE * CHANNELS)
            factors = ()
            for column in tl.static_range(SIDE):
                tap = (SIDE - 1 - column if MIRRORED else column) * CHANNELS
                factors = factors + (tl.load(line + tap + channel[None], mask=is_channel, other=0.0),)
            for step in tl.static_range(STRIP + SIDE - 1):
                values = load_neighbours(
                    sites, starts, shown, step, x, width, channel, is_channel, CHANNELS, PATCH, RADIUS, ACC
                )
                for column in tl.static_range(SIDE):
                    if step >= column and step - column < STRIP:  # the output of the strip that reads it with this tap
                        total = totals[step - column] + values * factors[column]
                        totals = totals[: step - column] + (total,) + totals[step - column + 1 :]
    for out in tl.static_range(STRIP):
        there = exists
        if PATCH == 0:
            there = exists & (x + out < width)
        offsets = (place + out)[:, None] * CHANNELS + channel[None]
        total = totals[out]
        if residual is not None:
            total += tl.load(residual + offsets, mask=there[:, None] & is_channel, other=0.0).to(ACC)
        tl.store(output + offsets, total.to(output.dtype.element_ty), mask=there[:, None] & is_channel)


@triton.jit
def weight_gradient_kernel(
    sites, grad, partial, cells, slots, height, width, count,
    CHANNELS: tl.constexpr, PATCH: tl.constexpr, SIDE: tl.constexpr, STEPS: tl.constexpr, STRIP: tl.constexpr,
    LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of one row of taps over a program's strips, and store them in (chunks, k * k, C).

    The sums of several programs are added by ``finish_kernel``: without atomics, runs are reproducible.
    """
    ACC: tl.constexpr = partial.dtype.element_ty
    RADIUS: tl.constexpr = SIDE // 2
    row, chunk = tl.program_id(2), tl.program_id(0)
    channel, is_channel = find_channels(CHANNELS, BLOCK)
    totals = (tl.zeros((LANES, BLOCK), ACC),) * SIDE
    for step in range(STEPS):
        tile = chunk * STEPS + step
        y, x, place, position, exists = find_strips(tile, cells, height, width, count, PATCH, STRIP, LANES)
        starts, shown = find_neighbours(y, place, position, exists, slots, row - RADIUS, height, width, PATCH, RADIUS)
        grads = ()
        for out in tl.static_range(STRIP):
            there = exists
            if PATCH == 0:
                there = exists & (x + out < width)
            pointers = grad + place[:, None] * CHANNELS + channel[None] + out * CHANNELS
            grads = grads + (widen(tl.load(pointers, mask=there[:, None] & is_channel, other=0.0), ACC),)
        for step in tl.static_range(STRIP + SIDE - 1):
            values = load_neighbours(
                sites, starts, shown, step, x, width, channel, is_channel, CHANNELS, PATCH, RADIUS, ACC
            )
            for column in tl.static_range(SIDE):
                if step >= column and step - column < STRIP:
                    total = totals[column] + values * grads[step - column]
                    totals = totals[:column] + (total,) + totals[column + 1 :]
    for column in tl.static_range(SIDE):
        line = (chunk * (SIDE * SIDE) + row * SIDE + column) * CHANNELS
        tl.store(partial + line + channel[None], tl.sum(totals[column], 0)[None], mask=is_channel)


@triton.jit
def finish_kernel(
    partial, norm_partial, branch_partial, grad_weight, grad_norm_weight, grad_norm_bias, grad_bias, grad_last_bias,
    chunks, norm_chunks, branch_chunks, channels,
    TAPS: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up partial sums (chunks, TAPS, C) of the weight, (chunks, 3, C) of the norm's weight, bias and input, and
    (chunks, C) of the last bias of a block's branch."""
    ACC: tl.constexpr = partial.dtype.element_ty
    row = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    if row < TAPS:
        source = partial + row * channels
        total = sum_chunks(source, TAPS * channels, chunks, channel, is_channel, ACC, STEPS, TILE)
        tl.store(grad_weight + channel * TAPS + row, total.to(grad_weight.dtype.element_ty), mask=is_channel)
    elif row == TAPS + 3:
        if branch_partial is not None:
            total = sum_chunks(branch_partial, channels, branch_chunks, channel, is_channel, ACC, STEPS, TILE)
            tl.store(grad_last_bias + channel, total.to(grad_last_bias.dtype.element_ty), mask=is_channel)
    else:
        if norm_partial is not None:
            source = norm_partial + (row - TAPS) * channels
            total = sum_chunks(source, 3 * channels, norm_chunks, channel, is_channel, ACC, STEPS, TILE)
            if row == TAPS:
                tl.store(grad_norm_weight + channel, total.to(grad_norm_weight.dtype.element_ty), mask=is_channel)
            elif row == TAPS + 1:
                tl.store(grad_norm_bias + channel, total.to(grad_norm_bias.dtype.element_ty), mask=is_channel)
            else:
                if grad_bias is not None:
                    tl.store(grad_bias + channel, total.to(grad_bias.dtype.element_ty), mask=is_channel)


def tile_of(channels: int, patch: int, gradient: bool = False) -> dict[str, int]:
    """Return the compile-time sizes of the convolution or of the weight's ``gradient``: sites per strip, strips and
    channels per program."""
    strip = patch or STRIP
    block = channels & -channels  # its largest factor that is a power of two
    block = min(block if block >= 8 else next_power_of_2(channels), BLOCK)
    values = PER_THREAD
    if strip == 8:  # as many registers for the results as strips of 4
        values //= 2
    elif strip == 1 and not gradient:  # two strips per thread share the taps
        values *= 2
    return dict(CHANNELS=channels, PATCH=patch, STRIP=strip, LANES=WARPS * 32 * values // block, BLOCK=block)


def _count_tiles(height: int, width: int, patch: int, count: int, tile: dict[str, int]) -> int:
    """Return how many tiles of LANES strips cover ``count`` cells, or maps."""
    strips = patch if patch else height * cdiv(width, tile['STRIP'])
    return cdiv(count * strips, tile['LANES'])


def _sizes(sites: Tensor, geometry: tuple) -> tuple[int, int, int, int, int]:
    """Return channels, height, width, patch, and the number of cells, or of images where there are whole maps."""
    height, width, patch, *_ = geometry
    batch, num_sites, channels = sites.shape
    return channels, height, width, patch, batch * num_sites // patch**2 if patch else batch


@sized
def _convolution(channels: int, height: int, width: int, patch: int, count: int, taps: int, mirrored: bool) -> Launch:
    tile = tile_of(channels, patch)
    grid = _count_tiles(height, width, patch, count, tile), cdiv(channels, tile['BLOCK'])
    constants = dict(tile, SIDE=math.isqrt(taps), MIRRORED=mirrored, **LISTS, num_warps=WARPS)
    return Launch(convolve_kernel, grid, (height, width, count), **constants)


@sized
def _listing(width: int, count: int) -> Launch:
    return Launch(list_kernel, (cdiv(count, LISTING['LANES']),), (width, count), **LISTING)


@sized
def _weight_gradient(channels: int, height: int, width: int, patch: int, count: int, side: int) -> Launch:
    tile = tile_of(channels, patch, gradient=True)
    blocks, tiles = cdiv(channels, tile['BLOCK']), _count_tiles(height, width, patch, count, tile)
    steps = next_power_of_2(cdiv(tiles * blocks * side, GRADIENT_PROGRAMS))  # few values occur
    constants = dict(tile, SIDE=side, STEPS=steps, num_warps=WARPS, maxnreg=GRADIENT_REGISTERS)
    grid = cdiv(tiles, steps), blocks, side
    return Launch(weight_gradient_kernel, grid, (height, width, count), **constants)


@sized
def _sums(chunks: int, norm_chunks: int, branch_chunks: int, taps: int, vectors: int, channels: int) -> Launch:
    counts = chunks, norm_chunks, branch_chunks
    grid = taps + vectors, cdiv(channels, BLOCK)
    return Launch(finish_kernel, grid, (*counts, channels), TAPS=taps, BLOCK=BLOCK, **steps_of(*counts))


def list_neighbours(cells: Tensor, slots: Tensor) -> Tensor:
    """Return lists of visible neighbours (B * K, LIST_LENGTH) from the two results of ``grid.cell_slots``."""
    lists = cells.new_empty(cells.numel(), LIST_LENGTH)
    _listing(slots.shape[2] - 2 * SLOT_BORDER, cells.numel())(cells, slots, lists)
    return lists


def transpose_taps(weight: Tensor) -> Tensor:
    """Return a weight (C, 1, k, k) as taps (k * k, C) in the dtype of sums, by one copy."""
    taps = weight.new_empty(weight[0].numel(), len(weight), dtype=statistics_dtype(weight.dtype))
    return taps.copy_(weight.flatten(1).t())


def convolve(
    sites: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: tuple,
    mirrored: bool = False,
    residual: Tensor | None = None,
) -> None:
    """Convolve sites (B, N, C) with taps (k * k, C) into ``output``, in its dtype; ``mirrored`` flips the kernel, and
    ``residual`` (B, N, C) is added."""
    launch = _convolution(*_sizes(sites, geometry), taps.shape[0], mirrored)
    *tables, lists = geometry[3:]
    launch(sites, taps, bias, residual, output, *tables, lists if len(taps) == LISTING['SIDE'] ** 2 else None)


def weight_gradient(sites: Tensor, grad: Tensor, side: int, geometry: tuple) -> Tensor:
    """Return partial sums (chunks, k * k, C) of the weight's gradient."""
    launch = _weight_gradient(*_sizes(sites, geometry), side)
    kind = statistics_dtype(sites.dtype)
    partial = sites.new_empty(launch.grid[0], side * side, sites.shape[2], dtype=kind)
    launch(sites, grad, partial, *geometry[3:5])
    return partial


def finish(
    partial: Tensor,
    grad_weight: Tensor,
    norm_partial: Tensor | None = None,
    vectors: tuple = (),
    branch_partial: Tensor | None = None,
) -> None:
    """Add up the partial sums of ``weight_gradient``, ``layer_norm.gradients`` and ``residual.branch_gradient``, by one
    kernel.

    Args:
        partial (Tensor): Sums (chunks, k * k, C).
        grad_weight (Tensor): Receives the weight's gradient, (C, 1, k, k).
        norm_partial (Tensor, optional): Sums (chunks, 3, C). Defaults to None.
        vectors (tuple): Receive the gradients of the norm's weight and bias, of the convolution's bias, and of the last
            bias of a block's branch, (C, ) each, as far as they are asked for.
        branch_partial (Tensor, optional): Sums (B, chunks, C). Defaults to None.
    """
    chunks, taps, channels = partial.shape
    norm_chunks = 0 if norm_partial is None else norm_partial.shape[0]
    branch_chunks = 0 if branch_partial is None else branch_partial.numel() // channels
    launch = _sums(chunks, norm_chunks, branch_chunks, taps, len(vectors), channels)
    launch(partial, norm_partial, branch_partial, grad_weight, *vectors, *[None] * (4 - len(vectors)))


@register_flop_formula([torch.ops.mmconvnextv2.site_depthwise, torch.ops.mmconvnextv2.site_depthwise_norm])
def _count(sites_shape, weight_shape, *args, **kwargs) -> int:
    """Count a multiply-add as two operations, as torch does for its convolutions."""
    return 2 * sites_shape.numel() * weight_shape[-1] ** 2


@register_flop_formula(
    [torch.ops.mmconvnextv2.site_depthwise_backward, torch.ops.mmconvnextv2.site_depthwise_norm_backward]
)
def _count_gradients(grad_shape, sites_shape, taps_shape, needs_sites, needs_weight, *args, **kwargs) -> int:
    return 2 * sites_shape.numel() * taps_shape[0] * (needs_sites + needs_weight)
