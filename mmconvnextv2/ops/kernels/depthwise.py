"""Kernels of ``ops.depthwise_triton``: depthwise convolution over sites (B, N, C) of a whole map or of visible cells.

One source serves both: only ``find_sites`` and ``find_neighbours`` know the geometry. On a whole map (PATCH = 0) a tile
is HEIGHT x WIDTH sites. On visible cells it is HEIGHT * WIDTH consecutive sites, and a neighbour is found through the
table of cell slots (B, h * w), -1 if masked. Weights have the layout (k * k, C). Sums are in float32, or float64 for
float64 inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..reductions import statistics_dtype

TILE, BLOCK = (4, 8), 64  # sites and channels per program of a convolution
NORM_SIZE = 4096  # sites times channels per program that also normalises, which covers all channels
GRADIENT_TILE, GRADIENT_BLOCK = (4, 4), 32  # sites and channels per step of the weight gradient
GRADIENT_PROGRAMS = 2048  # most programs that share the tiles of the weight gradient


@triton.jit
def find_sites(
    tile, cells, height, width, num_cells, batch, PATCH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Return image, row, column, index in (B * N) and existence of a tile's sites, each (HEIGHT * WIDTH, )."""
    lane = tl.arange(0, HEIGHT * WIDTH)
    if PATCH == 0:
        across, down = tl.cdiv(width, WIDTH), tl.cdiv(height, HEIGHT)
        image = tile // (across * down) + lane * 0  # broadcast to a vector, as in the other branch
        y = tile // across % down * HEIGHT + lane // WIDTH
        x = tile % across * WIDTH + lane % WIDTH
        place = (image.to(tl.int64) * height + y) * width + x  # offsets of large batches exceed int32
        exists = (image < batch) & (y < height) & (x < width)
    else:
        place = tile.to(tl.int64) * (HEIGHT * WIDTH) + lane
        slot, inner = place // (PATCH * PATCH), (place % (PATCH * PATCH)).to(tl.int32)
        exists = slot < batch * num_cells
        cell = tl.load(cells + slot, mask=exists, other=0).to(tl.int32)
        image = (slot // num_cells).to(tl.int32)
        y = cell // (width // PATCH) * PATCH + inner // PATCH
        x = cell % (width // PATCH) * PATCH + inner % PATCH
    return image, y, x, place, exists


@triton.jit
def find_neighbours(image, y, x, exists, slots, height, width, num_cells, PATCH: tl.constexpr):
    """Return the indices in (B * N) of the sites at given rows and columns, and whether those sites exist."""
    exists = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    if PATCH == 0:
        place = (image.to(tl.int64) * height + y) * width + x
    else:
        cell = (image * (height // PATCH) + y // PATCH) * (width // PATCH) + x // PATCH
        slot = tl.load(slots + cell, mask=exists, other=-1)
        exists = exists & (slot >= 0)
        place = (image.to(tl.int64) * num_cells + slot) * (PATCH * PATCH) + y % PATCH * PATCH + x % PATCH
    return place, exists


@triton.jit
def convolve_kernel(
    sites,
    weight,
    bias,
    output,
    cells,
    slots,
    norm_weight,
    norm_bias,
    normed,
    mean,
    rstd,
    height,
    width,
    num_cells,
    batch,
    channels,
    eps,
    PATCH: tl.constexpr,
    SIDE: tl.constexpr,
    MIRRORED: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
    ACC: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, y, x, place, exists = find_sites(
        tl.program_id(0), cells, height, width, num_cells, batch, PATCH, HEIGHT, WIDTH
    )
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    total = tl.zeros((HEIGHT * WIDTH, BLOCK), ACC)
    for row in range(SIDE):
        for column in tl.static_range(SIDE):
            found, shown = find_neighbours(
                image, y + row - SIDE // 2, x + column - SIDE // 2, exists, slots, height, width, num_cells, PATCH
            )
            tap = row * SIDE + column
            if MIRRORED:
                tap = SIDE * SIDE - 1 - tap
            factor = tl.load(weight + tap * channels + channel, mask=is_channel, other=0.0).to(ACC)
            values = tl.load(
                sites + found[:, None] * channels + channel[None], mask=shown[:, None] & is_channel[None], other=0.0
            )
            total += values.to(ACC) * factor[None]
    if BIAS:
        total += tl.load(bias + channel, mask=is_channel, other=0.0).to(ACC)[None]
    convolved = total.to(sites.dtype.element_ty)  # LayerNorm reads the rounded values, which backward recomputes from
    offsets, mask = place[:, None] * channels + channel[None], exists[:, None] & is_channel[None]
    if KEEP:
        tl.store(output + offsets, convolved, mask=mask)
    if NORM:  # BLOCK covers all channels, so mean and variance need no second kernel
        values = convolved.to(ACC)
        centre = tl.sum(values, 1) / channels
        values = tl.where(is_channel[None], values - centre[:, None], 0.0)
        inverse = 1 / tl.sqrt(tl.sum(values * values, 1) / channels + eps)
        scale = tl.load(norm_weight + channel, mask=is_channel, other=0.0).to(ACC)[None]
        shift = tl.load(norm_bias + channel, mask=is_channel, other=0.0).to(ACC)[None]
        values = values * inverse[:, None] * scale + shift
        tl.store(normed + offsets, values.to(normed.dtype.element_ty), mask=mask)
        if KEEP:
            tl.store(mean + place, centre, mask=exists)
            tl.store(rstd + place, inverse, mask=exists)


@triton.jit
def gradient_kernel(
    sites,
    grad,
    partial,
    cells,
    slots,
    height,
    width,
    num_cells,
    batch,
    channels,
    PATCH: tl.constexpr,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the gradients of one row of the kernel per program; each lane is a column.

    Lane SIDE, where inputs count as 1, sums the gradient of the bias.
    """
    ACC: tl.constexpr = partial.dtype.element_ty
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < channels
    lane = tl.arange(0, LANES)
    total = tl.zeros((HEIGHT * WIDTH, LANES, BLOCK), ACC)
    for step in range(STEPS):
        image, y, x, place, exists = find_sites(
            tl.program_id(0) * STEPS + step, cells, height, width, num_cells, batch, PATCH, HEIGHT, WIDTH
        )
        grads = tl.load(
            grad + place[:, None] * channels + channel[None], mask=exists[:, None] & is_channel[None], other=0.0
        ).to(ACC)
        found, shown = find_neighbours(
            image[:, None],
            (y + tl.program_id(2) - SIDE // 2)[:, None],
            x[:, None] + (lane - SIDE // 2)[None],
            exists[:, None] & (lane < SIDE)[None],
            slots,
            height,
            width,
            num_cells,
            PATCH,
        )
        values = tl.load(
            sites + found[:, :, None] * channels + channel[None, None],
            mask=shown[:, :, None] & is_channel[None, None],
            other=0.0,
        ).to(ACC)
        total += tl.where((lane == SIDE)[None, :, None], 1.0, values) * grads[:, None]
    # Partial sums per program, which torch adds up: no atomics, so results are reproducible
    row = (tl.program_id(0) * SIDE + tl.program_id(2)) * LANES + lane
    tl.store(
        partial + row[:, None] * channels + channel[None],
        tl.sum(total, 0),
        mask=(lane <= SIDE)[:, None] & is_channel[None],
    )


def _count_tiles(sites: Tensor, height: int, width: int, patch: int, tile: tuple[int, int]) -> int:
    """Return how many tiles cover sites (B, N, C)."""
    if patch:
        return triton.cdiv(sites.shape[0] * sites.shape[1], tile[0] * tile[1])
    return sites.shape[0] * triton.cdiv(height, tile[0]) * triton.cdiv(width, tile[1])


def _norm_tile(block: int) -> tuple[int, int]:
    """Return a tile's sides, powers of two and nearly square, for at most NORM_SIZE values per program or one site."""
    doublings = min(max((NORM_SIZE // block).bit_length() - 1, 0), 5)
    return 2 ** (doublings // 2), 2 ** (doublings - doublings // 2)


def convolve(
    sites: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple,
    mirrored: bool = False,
    norm: tuple[Tensor, Tensor, float] | None = None,
    keep: bool = True,
) -> tuple[Tensor, ...]:
    """Convolve sites, and normalise the result if ``norm`` gives weight, bias and eps.

    Returns:
        tuple[Tensor]: The result (B, N, C). With ``norm`` also the normalised result (B, N, C), mean and rstd (B, N);
        all except the normalised result are then empty unless ``keep`` is set.
    """
    height, width, patch, cells, slots = geometry
    batch, num_sites, channels = sites.shape
    block = triton.next_power_of_2(channels) if norm else BLOCK
    tile = _norm_tile(block) if norm else TILE
    kind = statistics_dtype(sites.dtype)
    output = torch.empty_like(sites) if keep else sites.new_empty(0)
    normed = torch.empty_like(sites) if norm else None
    mean, rstd = (sites.new_empty(batch, num_sites if keep else 0, dtype=kind) for _ in range(2))
    norm_weight, norm_bias, eps = norm or (None, None, 0.0)
    taps = weight.flatten(1).t().contiguous()  # (k * k, C)
    grid = _count_tiles(sites, height, width, patch, tile), triton.cdiv(channels, block)
    with torch.cuda.device_of(sites):  # Triton launches on the current device
        convolve_kernel[grid](
            sites,
            taps,
            bias,
            output,
            cells,
            slots,
            norm_weight,
            norm_bias,
            normed,
            mean,
            rstd,
            height,
            width,
            cells.shape[1] if patch else 0,
            batch,
            channels,
            eps,
            PATCH=patch,
            SIDE=weight.shape[-1],
            MIRRORED=mirrored,
            BIAS=bias is not None,
            NORM=norm is not None,
            KEEP=keep,
            ACC=tl.float64 if kind == torch.float64 else tl.float32,
            HEIGHT=tile[0],
            WIDTH=tile[1],
            BLOCK=block,
        )
    return (output,) if normed is None else (output, normed, mean, rstd)


def gradients(sites: Tensor, grad: Tensor, side: int, geometry: tuple) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight (C, 1, k, k) and of the bias (C, )."""
    height, width, patch, cells, slots = geometry
    batch, _, channels = sites.shape
    blocks = triton.cdiv(channels, GRADIENT_BLOCK)
    tiles = _count_tiles(sites, height, width, patch, GRADIENT_TILE)
    steps = triton.next_power_of_2(triton.cdiv(tiles * blocks * side, GRADIENT_PROGRAMS))
    chunks, lanes = triton.cdiv(tiles, steps), triton.next_power_of_2(side + 1)
    partial = sites.new_empty(chunks, side, lanes, channels, dtype=statistics_dtype(sites.dtype))
    with torch.cuda.device_of(sites):
        gradient_kernel[chunks, blocks, side](
            sites,
            grad,
            partial,
            cells,
            slots,
            height,
            width,
            cells.shape[1] if patch else 0,
            batch,
            channels,
            PATCH=patch,
            SIDE=side,
            LANES=lanes,
            STEPS=steps,
            HEIGHT=GRADIENT_TILE[0],
            WIDTH=GRADIENT_TILE[1],
            BLOCK=GRADIENT_BLOCK,
        )
    total = partial.sum(0).to(sites.dtype)  # (k, lanes, C)
    # Without the clone the bias's gradient would be a view that keeps the whole sum alive
    return total[:, :side].permute(2, 0, 1)[:, None].contiguous(), total[0, side].clone()


@register_flop_formula([torch.ops.mmconvnextv2.site_depthwise, torch.ops.mmconvnextv2.site_depthwise_norm])
def _count(sites_shape, weight_shape, *args, **kwargs) -> int:
    """Count a multiply-add as two operations, as torch does for its convolutions."""
    return 2 * sites_shape.numel() * weight_shape[-1] ** 2


@register_flop_formula(torch.ops.mmconvnextv2.site_depthwise_gradients)
def _count_gradients(sites_shape, grad_shape, side, *args, **kwargs) -> int:
    return 2 * sites_shape.numel() * side**2
