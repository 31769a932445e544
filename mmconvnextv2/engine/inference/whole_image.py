"""GRN over a whole image that is predicted in tiles.

GRN (arXiv 2301.00808, section 3.4) scales each channel by its norm over all sites of an image, so a tile that is
predicted by itself rescales its channels differently than its neighbours do. Two remedies:

- ``two-pass``: a first pass over all tiles sums the squares of each block's hidden features. The second pass predicts
  tiles with these norms in place of their own. Features of the first pass are scaled by the norms of their tile, which
  makes the norms of later blocks approximate. Features that UPerNet pools over the image come from the first pass too.
- ``exact``: the backbone runs block by block over all tiles, with the sites of the whole image on disk. A block reads
  each tile with a border of three sites, sums squares in one pass over the tiles, and is completed in a second one. The
  result is that of the image in one forward, with both sides padded to multiples of 32 pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.rasters import Window, windows_of
from ...models.block_phases import finish_block, hidden_features, reads_image
from ...models.convnext_v2 import ConvNeXtV2
from ...models.execution import CELL, get_execution
from ...models.grn import GlobalResponseNorm
from ...models.stems import Stem
from ...ops.grid import Grid
from ...utils.errors import UserError
from .tile_store import SiteFile, TileStore

REACH = 3  # sites that a 7x7 convolution reads to each side
HEADS = ('UPerHead', 'FCNHead', 'FPNHead')  # convolutional heads, and UPerNet's pooled maps
MARGIN = 192  # pixels around a tile that these heads and an FPN read, in multiples of CELL; they reach 148


def backbone_of(module: nn.Module) -> ConvNeXtV2:
    """Return a model's backbone.

    Raises:
        ValueError: If it is not a ConvNeXt V2, or leaves out sites, which sums over the image do not.
    """
    backbone = getattr(module, 'backbone', None)
    if not isinstance(backbone, ConvNeXtV2):
        raise UserError(
            f'the backbone is {type(backbone).__name__}: norms over the whole image are those of ConvNeXtV2; '
            'use --grn tile'
        )
    if backbone.valid_sites:
        raise UserError('norms over the whole image count all of its sites: use --grn tile, or set valid_sites=False')
    return backbone


def norms_of(backbone: ConvNeXtV2) -> dict[str, GlobalResponseNorm]:
    """Return the GRNs of a backbone by name; ConvNeXt V1 has none."""
    return {
        f'stages.{stage}.{number}.grn': block.grn
        for stage, blocks in enumerate(backbone.stages)
        for number, block in enumerate(blocks)
        if reads_image(block)
    }


@contextmanager
def summing_squares(
    backbone: ConvNeXtV2, size: tuple[int, int], window: Window, part: Window
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a dict that the forward of one tile fills with sums of squares, float64 (4C, ), by name of the GRN.

    Args:
        backbone (ConvNeXtV2): The backbone.
        size (tuple[int, int]): Rows and columns of its input, with padding.
        window (Window): Pixels of the tile.
        part (Window): Pixels to sum over; sites belong to it if their first pixel does.
    """
    sums: dict[str, np.ndarray] = {}

    def add(name: str, stride: int) -> Callable:
        def hook(grn: nn.Module, given: tuple, _: Tensor) -> None:
            sites = given[0][0].unflatten(0, (size[0] // stride, size[1] // stride))  # (h, w, 4C)
            top, left = (part.top - window.top) // stride, (part.left - window.left) // stride
            rows, columns = -(-part.height // stride), -(-part.width // stride)
            counted = sites[top : top + rows, left : left + columns]
            sums[name] = counted.double().square().sum((0, 1)).cpu().numpy()

        return hook

    with ExitStack() as stack:
        for name, grn in norms_of(backbone).items():
            stride = backbone.downsample_layers[0][0].stride[0] * 2 ** int(name.split('.')[1])
            stack.callback(grn.register_forward_hook(add(name, stride)).remove)
        yield sums


@contextmanager
def fixed_norms(backbone: ConvNeXtV2, sums: dict[str, np.ndarray]) -> Iterator[None]:
    """Let GRN use given sums of squares over sites, (4C, ) by name, in place of those of its own sites.

    Examples:
        >>> with fixed_norms(backbone, sums):
        ...     maps = backbone(tile)
    """

    def scale(squares: np.ndarray) -> Callable:
        norm = torch.from_numpy(np.sqrt(squares)).float()[None, None]  # (1, 1, 4C)

        def hook(grn: nn.Module, given: tuple, _: Tensor) -> Tensor:
            return grn.apply_norm(given[0], norm.to(given[0].device))

        return hook

    with ExitStack() as stack:
        for name, grn in norms_of(backbone).items():
            if name in sums:
                stack.callback(grn.register_forward_hook(scale(sums[name])).remove)
        yield


def check_exact(module: nn.Module, is_segmentor: bool) -> None:
    """Raise ``ValueError`` if a model cannot be computed exactly in parts."""
    backbone = backbone_of(module)
    norms_of(backbone)  # which checks them
    if not isinstance(backbone.downsample_layers[0], Stem) or backbone.gap_before_final_norm:
        raise UserError('--grn exact needs a backbone with the 4x4 patch stem that returns maps: use --grn two-pass')
    head, neck = type(getattr(module, 'decode_head', None)).__name__, type(getattr(module, 'neck', None)).__name__
    necks = ('NoneType',) if head == 'UPerHead' else ('NoneType', 'FPN')
    if is_segmentor and (head not in HEADS or neck not in necks):
        raise UserError(
            f'--grn exact: {head}{"" if neck == "NoneType" else f" after {neck}"} may read the whole image, which '
            f'{", ".join(HEADS)} do not. Use --grn two-pass'
        )


class WholeImage:
    """Feature maps of an image of any size, computed block by block with the sites on disk.

    Args:
        module (nn.Module): Detector or segmentor of MMDetection or MMSegmentation.
        read (Callable): Function that returns the normalised pixels (1, channels, h, w) of a window, 0 outside of the
            image.
        size (tuple[int, int]): Rows and columns of the image.
        side (int): Pixels along the side of the windows to compute.
        store (TileStore): Where sites and progress are kept.
    """

    def __init__(
        self, module: nn.Module, read: Callable[[Window], Tensor], size: tuple[int, int], side: int, store: TileStore
    ) -> None:
        self.module, self.backbone, self.read, self.store = module, backbone_of(module), read, store
        self.height, self.width = (-(-length // CELL) * CELL for length in size)  # padded
        self.side = max(side // CELL, 1) * CELL
        self.execution = get_execution('dense', False)
        self.device = next(module.parameters()).device
        self.steps: list[tuple[str, int, int]] = []
        for stage in range(max(self.backbone.out_indices) + 1):
            self.steps.append(('enter', stage, 0))
            for number, block in enumerate(self.backbone.stages[stage]):
                self.steps += [('sum', stage, number)] if reads_image(block) else []
                self.steps.append(('apply', stage, number))

    def file(self, stage: int, number: int) -> SiteFile:
        """Return the input of a stage's block; that of the number of blocks is the stage's output."""
        stride = 4 * 2**stage
        path = self.store.path(f'sites-{stage}-{number}')
        return SiteFile(path, self.height // stride, self.width // stride, self.backbone.channels[stage])

    def windows(self, stage: int) -> list[Window]:
        """Return the windows of a stage, in sites."""
        stride = 4 * 2**stage
        return windows_of(self.height // stride, self.width // stride, max(self.side // stride, 1))

    @property
    def num_windows(self) -> int:
        """Windows that :meth:`compute` visits in all of its passes."""
        return sum(len(self.windows(stage)) for _, stage, _ in self.steps)

    def compute(self, update: Callable[[int], Any]) -> None:
        """Compute the feature maps, continuing an interrupted computation.

        Args:
            update (Callable): Called with the number of windows that are done, for a progress bar.
        """
        found = self.store.load('passes.npz')
        first, place, sums = (0, 0, None) if found is None else (int(found['step']), int(found['place']), found['sums'])
        for index, (kind, stage, number) in enumerate(self.steps):
            windows = self.windows(stage)
            if index < first:
                update(len(windows))
                continue
            start = place if index == first else 0
            update(start)
            if kind == 'sum' and not start:
                sums = np.zeros(self.backbone.stages[stage][number].pointwise_conv1.out_features)
            for done, window in enumerate(windows[start:], start + 1):
                with torch.inference_mode():
                    if kind == 'enter':
                        self._enter(stage, window)
                    elif kind == 'sum':
                        sums = sums + self._sum(stage, number, window)
                    else:
                        self._apply(stage, number, window, sums)
                # Norms are kept until the next sum; a step is over when the next one is noted
                noted = (index, done) if done < len(windows) else (index + 1, 0)
                self.store.save('passes.npz', step=noted[0], place=noted[1], sums=np.zeros(0) if sums is None else sums)
                update(1)
            if kind == 'apply':
                self.store.remove(f'sites-{stage}-{number}')
            if kind == 'enter' and stage and stage - 1 not in self.backbone.out_indices:
                self.store.remove(f'sites-{stage - 1}-{self.backbone.depths[stage - 1]}')

    def _enter(self, stage: int, window: Window) -> None:
        """Compute the first sites of a stage in a window, from pixels or from the stage before."""
        factor = 2 if stage else 4
        before = Window(*(factor * one for one in window))
        layer = self.backbone.downsample_layers[stage]
        if stage == 0:
            images = self.read(before).to(self.device).contiguous(memory_format=torch.channels_last)
            sites, _ = layer(images, None, self.execution)
        else:
            given = self.file(stage - 1, self.backbone.depths[stage - 1]).read(before).to(self.device)
            sites, _ = layer(given, Grid(before.height, before.width, 2 * 2**stage), self.execution)
        self.file(stage, 0).write(window, sites)

    def _hidden(self, stage: int, number: int, window: Window) -> tuple[Tensor, Tensor]:
        """Return a block's input (1, N, C) and hidden features (1, N, 4C) in a window."""
        file, block = self.file(stage, number), self.backbone.stages[stage][number]
        wide = Window(window.top - REACH, window.left - REACH, window.height + 2 * REACH, window.width + 2 * REACH)
        wide = wide.intersection(Window(0, 0, file.height, file.width))
        sites = file.read(wide).to(self.device)
        inner = window.slices(wide[:2])
        grid = Grid(wide.height, wide.width, 4 * 2**stage, kernels=block.kernels)
        hidden = hidden_features(block, sites, grid, self.execution)

        def cut(given: Tensor) -> Tensor:
            return given[0].unflatten(0, (wide.height, wide.width))[inner].flatten(0, 1)[None]

        return cut(sites), cut(hidden)

    def _sum(self, stage: int, number: int, window: Window) -> np.ndarray:
        _, hidden = self._hidden(stage, number, window)
        return hidden[0].double().square().sum(0).cpu().numpy()

    def _apply(self, stage: int, number: int, window: Window, sums: np.ndarray | None) -> None:
        sites, hidden = self._hidden(stage, number, window)
        block, norm = self.backbone.stages[stage][number], None
        if reads_image(block):
            assert sums is not None  # of the step before
            norm = torch.from_numpy(np.sqrt(sums)).to(hidden)[None, None]
        self.file(stage, number + 1).write(window, finish_block(block, sites, hidden, norm))

    def maps(self, window: Window) -> tuple[Tensor, ...]:
        """Return the backbone's maps (1, C, h / s, w / s) in a window whose numbers are multiples of 32 pixels."""
        found = []
        for stage in self.backbone.out_indices:
            area = Window(*(one // (4 * 2**stage) for one in window))
            sites = self.file(stage, self.backbone.depths[stage]).read(area).to(self.device)
            with torch.inference_mode():
                grid = Grid(area.height, area.width, 4 * 2**stage)
                found.append(self.backbone._output(stage, sites, grid, self.execution))
        return tuple(found)

    def around(self, window: Window, margin: int = MARGIN) -> Window:
        """Return a window with a margin, by default what heads read, in multiples of 32 pixels within the image."""
        top, left = (max(one // CELL * CELL - margin, 0) for one in window[:2])
        bottom = min(-(-window.bottom // CELL) * CELL + margin, self.height)
        right = min(-(-window.right // CELL) * CELL + margin, self.width)
        return Window(top, left, bottom - top, right - left)

    def pooled(self) -> list[Tensor] | None:
        """Return UPerNet's pooled maps of the whole image, (1, C, scale, scale) per scale; None for other heads."""
        pooling = pooling_of(self.module)
        if pooling is None:
            return None
        index, stride, scales = pooling
        rows, columns = self.height // stride, self.width // stride
        channels = self.backbone.channels[self.backbone.out_indices[index]]
        totals = [np.zeros((scale, scale, channels)) for scale in scales]
        for row in range(rows):
            line = self.maps(Window(row * stride // CELL * CELL, 0, CELL, self.width))[index]
            line = line[0, :, row % (CELL // stride)].double().cpu().numpy().T  # (W, C)
            for scale, total in zip(scales, totals):
                across = np.stack([line[slice(*_bin(one, scale, columns))].mean(0) for one in range(scale)])
                for one in range(scale):
                    first, last = _bin(one, scale, rows)
                    if first <= row < last:  # bins of adaptive pooling may share rows
                        total[one] += across / (last - first)
        return pooled_maps(self.module, totals)

    @contextmanager
    def serving(self, window: Window, pooled: list[Tensor] | None) -> Iterator[None]:
        """Let the model take its maps in a window from here, whatever its input."""
        backbone = self.module.backbone
        with ExitStack() as stack:
            if pooled is not None:
                stack.enter_context(fixed_pools(self.module, pooled, (self.height, self.width), window))
            self.module.backbone = _Served(self.maps(window))
            stack.callback(setattr, self.module, 'backbone', backbone)
            yield


def pooling_of(module: nn.Module) -> tuple[int, int, list[int]] | None:
    """Return the map that UPerNet's or PSPNet's head pools, its stride, and the scales; None for other models."""
    head = getattr(module, 'decode_head', None)
    if not hasattr(head, 'psp_modules') or getattr(module, 'neck', None) is not None:
        return None
    index = head.in_index if isinstance(head.in_index, int) else head.in_index[-1]
    backbone = backbone_of(module)
    stride = backbone.downsample_layers[0][0].stride[0] * 2 ** backbone.out_indices[index]
    return index, stride, [pool[0].output_size for pool in head.psp_modules]


def summed_bins(
    maps: tuple[Tensor, ...], module: nn.Module, size: tuple[int, int], window: Window, part: Window
) -> dict[str, np.ndarray]:
    """Sum what a tile contributes to pooled maps of the image.

    Args:
        maps (tuple[Tensor]): Maps of the backbone in the tile.
        module (nn.Module): The segmentor.
        size (tuple[int, int]): Rows and columns of the image, in pixels.
        window (Window): Pixels of the tile.
        part (Window): Pixels to sum over; sites belong to it if their centres do.

    Returns:
        dict: ``pool-S``, float64 (S, S, C + 1) by scale, sums and in the last channel counts; empty for other heads.
    """
    pooling, sums = pooling_of(module), {}
    if pooling is None:
        return sums
    index, stride, scales = pooling
    sites = maps[index][0].double().permute(1, 2, 0).cpu().numpy()  # (h, w, C)
    centres = [first + (np.arange(count) + 0.5) * stride for first, count in zip(window[:2], sites.shape)]
    inside = [(low <= one) & (one < high) for one, low, high in zip(centres, part[:2], (part.bottom, part.right))]
    sites = np.concatenate([sites, np.ones_like(sites[..., :1])], 2)[np.ix_(*inside)]
    for scale in scales:
        rows, columns = (
            np.minimum(one[kept] * scale / length, scale - 1).astype(int)
            for one, kept, length in zip(centres, inside, size)
        )
        total = np.zeros((scale, scale, sites.shape[2]))
        np.add.at(total, (rows[:, None], columns[None]), sites)
        sums[f'pool-{scale}'] = total
    return sums


def pooled_maps(module: nn.Module, means: list[np.ndarray]) -> list[Tensor]:
    """Return the head's features (1, C, S, S) of each scale for means (S, S, C) of the map over its bins."""
    device = next(module.parameters()).device
    with torch.inference_mode():
        return [
            pool[1](torch.from_numpy(mean).to(device, torch.float32).permute(2, 0, 1)[None])
            for pool, mean in zip(module.decode_head.psp_modules, means)
        ]


@contextmanager
def fixed_pools(module: nn.Module, pooled: list[Tensor], size: tuple[int, int], window: Window) -> Iterator[None]:
    """Let a head use its pooled features of the whole image, (1, C, S, S) by scale, in a window of it.

    Args:
        module (nn.Module): The segmentor.
        pooled (list[Tensor]): From :func:`pooled_maps`.
        size (tuple[int, int]): Rows and columns of the image, in pixels.
        window (Window): Pixels that the model sees.
    """
    pooling = pooling_of(module)
    assert pooling is not None  # there are pooled features
    stride = pooling[1]

    def hook(pools: nn.Module, given: tuple, _: Any) -> list[Tensor]:
        counts = given[0].shape[-2:]
        spans = [(first / stride, count, whole / stride) for first, count, whole in zip(window[:2], counts, size)]
        return [_resize_part(one, spans, pools.align_corners) for one in pooled]

    handle = module.decode_head.psp_modules.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Served(nn.Module):
    """Stand-in for a backbone, with given maps."""

    def __init__(self, maps: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.maps


def _bin(index: int, scale: int, length: int) -> tuple[int, int]:
    """Return the first and the last position + 1 of a bin of adaptive average pooling."""
    return index * length // scale, -(-(index + 1) * length // scale)


def _resize_part(small: Tensor, spans: list[tuple[float, int, float]], align_corners: bool) -> Tensor:
    """Resize a map (1, C, s, s) bilinearly to a whole one, and return a part of it.

    Args:
        small (Tensor): The map.
        spans (list[tuple]): First position, length of the part and length of the whole, for rows and for columns.
        align_corners (bool): As of ``F.interpolate``.
    """
    axes = []
    for first, length, whole in spans:
        places = first + torch.arange(length, device=small.device, dtype=torch.float64)
        if align_corners:
            axes.append(places * (2 / max(whole - 1, 1)) - 1)
        else:
            axes.append((places + 0.5) * (2 / whole) - 1)
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing='xy'), -1)[None].to(small.dtype)
    return F.grid_sample(small, grid, mode='bilinear', padding_mode='border', align_corners=align_corners)
