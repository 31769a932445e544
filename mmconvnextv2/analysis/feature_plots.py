"""Plots of features, like the paper's figures 3, 4 and 7; each function writes a file."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]  # normalised depths, values


class Panel(NamedTuple):
    """The channel maps of one image at one block."""

    title: str
    maps: np.ndarray  # (channels, H, W)


def plot_over_depth(curves: dict[str, Curve], ylabel: str, path: str) -> None:
    """Plot one curve per model over normalised depth; values must not be negative."""
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for label, (depths, values) in curves.items():
        axes.plot(depths, values, marker='o', markersize=3.5, label=label)
    highest = max(max(values) for _, values in curves.values())
    axes.set(xlabel='normalised depth', ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(0, 1.05 * highest or 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_selectivity(indices: dict[str, list[np.ndarray]], path: str, num_bins: int = 25) -> None:
    """Plot, for each model, the distribution and the mean of the channels' selectivity in every block.

    Args:
        indices (dict[str, list[np.ndarray]]): Selectivity indices of the channels for each model, one array (C, ) per
            block.
        path (str): Path of the image file.
        num_bins (int): Number of bins in [0, 1]. Defaults to 25.
    """
    figure = Figure(figsize=(5.2 * len(indices), 4.2), layout='constrained')
    columns = figure.subplots(1, len(indices), squeeze=False)[0]
    shares = {
        label: np.stack([np.histogram(block, num_bins, (0, 1))[0] / len(block) for block in blocks], axis=1)
        for label, blocks in indices.items()
    }  # (bins, blocks)
    highest = max(share.max() for share in shares.values())
    for axes, (label, blocks) in zip(columns, indices.items()):
        image = axes.imshow(
            shares[label],
            origin='lower',
            aspect='auto',
            cmap='magma_r',
            vmin=0,
            vmax=highest,
            extent=(-0.5, len(blocks) - 0.5, 0, 1),
        )
        axes.plot([block.mean() for block in blocks], color='tab:cyan')
        axes.set(title=f'{label} (line: mean)', xlabel='block', ylabel='class selectivity index')
    figure.colorbar(image, ax=columns, label='share of channels')
    figure.savefig(path, dpi=150)


def mosaic(maps: np.ndarray) -> np.ndarray:
    """Tile maps (channels, H, W) in a square with gaps of NaN, scaled to their common range.

    All maps share one scale, so a dead channel looks dead. The scale ends at the 1st and 99th percentiles, since a few
    sites of strong channels would otherwise darken the rest.
    """
    low, high = np.percentile(maps, (1, 99))
    maps = np.clip((maps - low) / max(high - low, 1e-12), 0, 1)
    side = int(np.ceil(len(maps) ** 0.5))
    gap = max(1, round(maps.shape[1] / 14))
    height, width = maps.shape[1] + gap, maps.shape[2] + gap
    tiles = np.full((side * height + gap, side * width + gap), np.nan)
    for index, one in enumerate(maps):
        row, column = gap + index // side * height, gap + index % side * width
        tiles[row : row + one.shape[0], column : column + one.shape[1]] = one
    return tiles


def plot_maps(images: np.ndarray, rows: Sequence[Sequence[Panel]], title: str, path: str) -> None:
    """Plot one row per image: the image, then the channel maps of each block.

    Args:
        images (np.ndarray): Images of shape (B, H, W, 3), uint8.
        rows (Sequence[Sequence[Panel]]): Panels of each image.
        title (str): Title of the figure.
        path (str): Path of the image file.
    """
    num_columns = 1 + max(map(len, rows))
    figure = Figure(figsize=(3 * num_columns, 3.3 * len(rows) + 0.4), layout='constrained')
    figure.suptitle(title)
    for grid, image, panels in zip(figure.subplots(len(rows), num_columns, squeeze=False), images, rows):
        for axes in grid:
            axes.set_axis_off()
        grid[0].imshow(image)
        for axes, panel in zip(grid[1:], panels):
            axes.imshow(mosaic(panel.maps), cmap='viridis', vmin=0, vmax=1, interpolation='nearest')
            axes.set_title(panel.title, fontsize=9)
    figure.savefig(path, dpi=150)
