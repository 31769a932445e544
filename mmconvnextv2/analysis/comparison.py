"""Comparison of starts by paired runs: means, differences with confidence intervals, what follows, and figures.

Runs of the same seed and fraction share images, order and initial head, so starts are compared within pairs. Intervals
are Student's, from the differences of N seeds with N - 1 degrees of freedom.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from matplotlib.figure import Figure
from scipy.stats import t as student

CONFIDENCE = 0.95
COLOURS = [f'C{number}' for number in range(10)]
Curve = dict[int, float]  # metric by iteration or epoch


class Score(NamedTuple):
    """Result of one run.

    Attributes:
        start (str): Name of the start.
        fraction (float): Share of the labelled images, in (0, 1].
        seed (int): Seed.
        images (int): Labelled images in that share.
        value (float): Metric at the end of training.
    """

    start: str
    fraction: float
    seed: int
    images: int
    value: float


class Difference(NamedTuple):
    """A start minus the reference, over seeds.

    Attributes:
        start (str): Name of the start.
        fraction (float | None): Share of the labelled images; None for the mean over all fractions.
        mean (float): Mean difference.
        margin (float): Half the width of its interval; infinite with one seed.
        seeds (int): Number of seeds.
    """

    start: str
    fraction: float | None
    mean: float
    margin: float
    seeds: int

    def exceeds_chance(self) -> bool:
        """Return whether the interval excludes 0."""
        return abs(self.mean) > self.margin


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the mean of differences, and half the width of its confidence interval (infinite for one value)."""
    count = len(values)
    if count < 2:
        return mean(values), math.inf
    quantile = float(student.ppf((1 + confidence) / 2, count - 1))
    return mean(values), quantile * stdev(values) / math.sqrt(count)


def find_differences(scores: Sequence[Score], reference: str) -> tuple[list[Difference], list[Difference]]:
    """Return the difference of each start to a reference, over all fractions, and per fraction.

    The first is taken from seeds that ran at every fraction. Its intervals hold together: with k starts each has the
    confidence 1 - 0.05 / k (Bonferroni). Those per fraction hold one by one.

    Args:
        scores (Sequence[Score]): Results.
        reference (str): Name of the start to compare with.
    """
    values = {(one.start, one.fraction, one.seed): one.value for one in scores}
    starts = [start for start in dict.fromkeys(one.start for one in scores) if start != reference]
    fractions, seeds = ({one[place] for one in scores} for place in (1, 2))
    overall, each = [], []
    for start in starts:
        pairs: dict[int, dict[float, float]] = defaultdict(dict)
        for seed in sorted(seeds):
            for fraction in fractions:
                if {(start, fraction, seed), (reference, fraction, seed)} <= values.keys():
                    pairs[seed][fraction] = values[start, fraction, seed] - values[reference, fraction, seed]
        whole = [mean(found.values()) for found in pairs.values() if len(found) == len(fractions)]
        if whole:
            confidence = 1 - (1 - CONFIDENCE) / len(starts)
            overall.append(Difference(start, None, *interval(whole, confidence), len(whole)))
        for fraction in sorted(fractions):
            found = [one[fraction] for one in pairs.values() if fraction in one]
            if found:
                each.append(Difference(start, fraction, *interval(found), len(found)))
    return overall, each


def conclude(difference: Difference, reference: str, metric: str) -> str:
    """Say in one sentence what follows from a difference over all fractions."""
    name, seeds = difference.start, difference.seeds
    if seeds < 2:
        return f'{name} against {reference}: {difference.mean:+.1f} {metric} with one seed, which shows nothing alone.'
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    numbers = f'{CONFIDENCE:.0%} interval {low:+.1f} to {high:+.1f}, {seeds} seeds'
    if difference.exceeds_chance():
        side = 'above' if difference.mean > 0 else 'below'
        return f'{name} ends {abs(difference.mean):.1f} {metric} {side} {reference}, more than chance ({numbers}).'
    return (
        f'{name} against {reference}: {difference.mean:+.1f} {metric}, not a difference beyond chance ({numbers}). '
        f'With these seeds only differences above {difference.margin:.1f} would show.'
    )


def tabulate(scores: Sequence[Score], reference: str) -> tuple[list[str], list[list[str]]]:
    """Return a table by fraction: mean and deviation of each start, and differences to the reference with intervals."""
    starts = list(dict.fromkeys(one.start for one in scores))
    each = {(one.start, one.fraction): one for one in find_differences(scores, reference)[1]}
    others = [start for start in starts if start != reference]
    header = ['fraction', 'images', *starts, *(f'{start} - {reference}' for start in others)]
    rows = []
    for fraction in sorted({one.fraction for one in scores}):
        here = [one for one in scores if one.fraction == fraction]
        row = [f'{fraction:g}', f'{here[0].images:,}']
        for start in starts:
            row.append(_spread([one.value for one in here if one.start == start]))
        for start in others:
            found = each.get((start, fraction))
            row.append('' if found is None else _with_margin(found))
        rows.append(row)
    return header, rows


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ''
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f} ({len(values)})' if len(values) > 1 else ' (1)')


def _with_margin(difference: Difference) -> str:
    if difference.seeds < 2:
        return f'{difference.mean:+.1f}'
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    return f'{difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]'


def draw_scores(scores: Sequence[Score], reference: str, metric: str) -> Figure:
    """Draw the metric against the labelled images, with every run as a point, and the differences with intervals."""
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    starts = list(dict.fromkeys(one.start for one in scores))
    images = {one.fraction: one.images for one in scores}
    for colour, start in zip(COLOURS, starts):
        by_images: dict[int, list[float]] = defaultdict(list)
        for one in scores:
            if one.start == start:
                by_images[one.images].append(one.value)
        places = sorted(by_images)
        means = [mean(by_images[place]) for place in places]
        spreads = [stdev(by_images[place]) if len(by_images[place]) > 1 else 0.0 for place in places]
        left.plot(places, means, '-o', color=colour, label=start)
        low, high = ([one + sign * spread for one, spread in zip(means, spreads)] for sign in (-1, 1))
        left.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        for place, values in by_images.items():
            left.plot([place] * len(values), values, '.', color=colour, alpha=0.5)
    left.set(xlabel='labelled images', ylabel=metric, title='mean, deviation and every run')
    others = [start for start in starts if start != reference]
    each = find_differences(scores, reference)[1]
    for number, start in enumerate(others):
        found = [one for one in each if one.start == start]
        places = [images[one.fraction] * 1.04 ** (number - (len(others) - 1) / 2) for one in found]
        margins = [one.margin if one.seeds > 1 else 0.0 for one in found]
        colour = COLOURS[starts.index(start)]
        right.errorbar(places, [one.mean for one in found], margins, fmt='o', capsize=4, color=colour, label=start)
    right.axhline(0, color='grey', linewidth=1)
    right.set(xlabel='labelled images', ylabel=f'{metric} minus {reference}', title='paired difference, 95 % interval')
    ticks = sorted(set(images.values()))
    for axes in (left, right):
        if len(ticks) > 1:
            axes.set_xscale('log')
        axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    if len(others) > 1:
        right.legend()
    return figure


def draw_curves(curves: dict[tuple[str, float], list[Curve]], metric: str, unit: str) -> Figure | None:
    """Draw the metric during training: a panel per fraction, the mean and the range over seeds per start.

    Args:
        curves (dict): Curves of all seeds by start and fraction.
        metric (str): Name of the metric.
        unit (str): What training is counted in.

    Returns:
        Figure | None: None if no run was evaluated more than once.
    """
    if max((len(one) for found in curves.values() for one in found), default=0) < 2:
        return None
    fractions, starts = (sorted({key[1] for key in curves}), list(dict.fromkeys(key[0] for key in curves)))
    figure = Figure(figsize=(max(5.5, 3.7 * len(fractions)), 3.6), layout='constrained')
    panels = figure.subplots(1, len(fractions), sharey=True, squeeze=False)[0]
    for axes, fraction in zip(panels, fractions):
        for colour, start in zip(COLOURS, starts):
            found = curves.get((start, fraction), [])
            steps = sorted(set.intersection(*(set(one) for one in found))) if found else []
            values = [[one[step] for one in found] for step in steps]
            axes.plot(steps, [mean(one) for one in values], '-o', markersize=3, color=colour, label=start)
            axes.fill_between(steps, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=unit, title=f'{fraction:g} of the labels')
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(metric)
    panels[0].legend()
    return figure
