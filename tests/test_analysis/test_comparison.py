"""Starts are compared by Student's intervals of paired differences, and the sentence says what they show, no more."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mmconvnextv2.analysis.comparison import (
    Difference,
    Score,
    conclude,
    draw_curves,
    draw_scores,
    find_differences,
    interval,
    tabulate,
)


def scores_of(starts, seeds=4, fractions=(0.1, 1.0), shared=3.0, noise=0.5):
    """Runs whose seeds shift all starts alike, which pairs must remove."""
    random = np.random.default_rng(0)
    shifts = {key: random.normal(0, shared) for key in itertools.product(range(seeds), fractions)}
    return [
        Score(
            start, fraction, seed, round(100 * fraction), 50 + gain + shifts[seed, fraction] + random.normal(0, noise)
        )
        for seed, fraction, (start, gain) in itertools.product(range(seeds), fractions, starts.items())
    ]


def test_interval_is_that_of_a_paired_t_test():
    """Mean and interval are those of SciPy's test of paired samples, whose p-value is 0.05 at the border."""
    random = np.random.default_rng(1)
    a, b = random.normal(2, 1, 5), random.normal(0, 1, 5)
    mean, margin = interval(list(a - b))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx((a - b).mean()) and (mean - margin, mean + margin) == pytest.approx(tuple(expected))
    border = stats.ttest_rel(a - b, np.full(5, mean - margin)).pvalue
    assert border == pytest.approx(0.05)
    assert interval([1.5]) == (1.5, math.inf)
    assert interval([2.0, 2.0]) == (2.0, 0.0)


def test_pairs_remove_what_a_seed_shifts_for_all():
    """A gain far below the spread of the seeds is found in pairs; each fraction has its own difference."""
    scores = scores_of(dict(scratch=0, mine=1.5, same=0), seeds=6)
    overall, each = find_differences(scores, 'scratch')
    values = {(one.start, one.seed, one.fraction): one.value for one in scores}
    paired = [
        np.mean([values['mine', seed, fraction] - values['scratch', seed, fraction] for fraction in (0.1, 1.0)])
        for seed in range(6)
    ]
    found = {one.start: one for one in overall}
    low, high = stats.t.interval(1 - 0.05 / 2, 5, np.mean(paired), stats.sem(paired))  # two starts: Bonferroni
    assert found['mine'].mean == pytest.approx(np.mean(paired))
    assert found['mine'].margin == pytest.approx((high - low) / 2)
    assert found['mine'].exceeds_chance() and not found['same'].exceeds_chance()
    assert [(one.start, one.fraction, one.seeds) for one in each] == [
        ('mine', 0.1, 6), ('mine', 1.0, 6), ('same', 0.1, 6), ('same', 1.0, 6)
    ]  # fmt: skip
    spread = np.std([one.value for one in scores if one.start == 'scratch'], ddof=1)
    assert spread > 1.5


def test_incomplete_pairs_do_not_count():
    """A seed without one of its runs is left out of what it lacks, and of the mean over all fractions."""
    scores = scores_of(dict(scratch=0, mine=5))
    lacking = [one for one in scores if (one.start, one.seed, one.fraction) != ('mine', 2, 0.1)]
    overall, each = find_differences(lacking, 'scratch')
    assert overall[0].seeds == 3 and [one.seeds for one in each] == [3, 4]
    assert find_differences([one for one in scores if one.start == 'mine'], 'scratch') == ([], [])


def test_chance_alone_is_rarely_a_finding():
    """Of comparisons of equal starts, about 5 % are called more than chance, over both starts together."""
    wrong = 0
    for trial in range(400):
        random = np.random.default_rng(trial)
        scores = [
            Score(start, 1.0, seed, 10, random.normal()) for seed in range(3) for start in ('scratch', 'one', 'two')
        ]
        wrong += any(one.exceeds_chance() for one in find_differences(scores, 'scratch')[0])
    assert 0.02 < wrong / 400 < 0.08


def test_sentences():
    """A difference, the lack of one, and a single seed are said as what they are."""
    assert conclude(Difference('mine', None, 2.04, 1.1, 3), 'scratch', 'mIoU') == (
        'mine ends 2.0 mIoU above scratch, more than chance (95% interval +0.9 to +3.1, 3 seeds).'
    )
    assert 'below scratch, more than chance' in conclude(Difference('mine', None, -2, 1.1, 3), 'scratch', 'mIoU')
    tie = conclude(Difference('mine', None, 0.4, 1.1, 3), 'scratch', 'mIoU')
    assert 'not a difference beyond chance' in tie and 'only differences above 1.1 would show' in tie
    assert 'shows nothing alone' in conclude(Difference('mine', None, 9, math.inf, 1), 'scratch', 'mIoU')


def test_table_and_figures():
    """The table has a row per fraction with means, deviations and differences; every run is a point of the figure, and
    the curves are means over seeds."""
    scores = scores_of(dict(scratch=0, mine=1.5), seeds=3)
    header, rows = tabulate(scores, 'scratch')
    assert header == ['fraction', 'images', 'scratch', 'mine', 'mine - scratch']
    small = [one.value for one in scores if (one.start, one.fraction) == ('mine', 0.1)]
    assert rows[0][:2] == ['0.1', '10'] and rows[0][3] == f'{np.mean(small):.1f} ± {np.std(small, ddof=1):.1f} (3)'
    left = draw_scores(scores, 'scratch', 'mIoU').axes[0]
    drawn = sorted(y for line in left.lines if line.get_linestyle() == 'None' for y in line.get_ydata())
    assert drawn == pytest.approx(sorted(one.value for one in scores))
    curves = {('scratch', 1.0): [{10: 1.0, 20: 3.0}, {10: 2.0, 20: 5.0}], ('mine', 1.0): [{10: 4.0, 20: 6.0}]}
    (axes,) = draw_curves(curves, 'mIoU', 'iteration').axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.5, 4.0], [4.0, 6.0]]
    assert draw_curves({('scratch', 1.0): [{10: 1.0}]}, 'mIoU', 'iteration') is None
