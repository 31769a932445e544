"""Losses of several targets from their formulas, in numpy and float64, cell by cell and pixel by pixel."""

import numpy as np


def cell_of_map(array, cell, columns, side):
    """Pixels (side * side, channels) of a cell, in raster order, of a map (channels, H, W)."""
    top, left = cell // columns * side, cell % columns * side
    return array[:, top : top + side, left : left + side].reshape(len(array), -1).T


def cross_entropy(logits, label):
    shifted = logits - logits.max()
    return np.log(np.exp(shifted).sum()) - shifted[label]


def loss_of(kind, predicted, array, masked, side, norm_cell=False):
    """Loss of one target, or None where nothing is left of it.

    ``predicted`` is (B, M, P, C) or (B, C). ``array`` is (B, C, H, W) or (B, C), NaN where values are missing; classes
    are (B, H, W) or (B, ), -1 where labels are missing. ``masked`` lists the masked cells of each image.
    """
    errors = []
    for image, one in enumerate(array):
        if kind == 'image values':
            errors += [(p - v) ** 2 for p, v in zip(predicted[image], one) if not np.isnan(v)]
        elif kind == 'image classes':
            errors += [cross_entropy(predicted[image], one)] if one >= 0 else []
        else:
            maps = one if kind == 'pixel values' else one[None]
            for place, cell in enumerate(masked[image]):
                pixels = cell_of_map(maps, cell, maps.shape[2] // side, side)
                if kind == 'pixel classes':
                    labels = pixels[:, 0]
                    errors += [cross_entropy(p, k) for p, k in zip(predicted[image, place], labels) if k >= 0]
                    continue
                there = ~np.isnan(pixels)
                if not there.any():
                    continue
                values = pixels[there]
                if norm_cell:
                    variance = values.var(ddof=1) if len(values) > 1 else 0.0
                    values = (values - values.mean()) / np.sqrt(variance + 1e-6)
                errors.append(np.mean((predicted[image, place][there] - values) ** 2))
    return np.mean(errors) if errors else None


def total_of(losses, log_variances):
    """Sum of exp(-s) L + s over the targets that have a loss."""
    return sum(np.exp(-s) * loss + s for loss, s in zip(losses, log_variances) if loss is not None)
