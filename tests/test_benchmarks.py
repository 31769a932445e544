"""The measuring behind the benchmark tables."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    yield
    for name in ('contestants', 'loader', 'measure', 'parts', 'speed'):
        sys.modules.pop(name, None)


def test_contestants_take_turns(benchmarks):
    """Each has a turn a round, of a step that is not timed and one that is, and ratios pair turns of the same round."""
    from measure import race, ratio

    calls = []
    seconds = race({name: lambda name=name: calls.append(name) for name in 'ab'}, 3, torch.device('cpu'))
    assert calls == ['a', 'a', 'b', 'b'] * 3
    assert [len(one) for one in seconds.values()] == [3, 3]
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 8.0]) == (2.0, 1.0, 3.0)


def test_saved_bytes_are_counted_once(benchmarks):
    """Weights are left out, and a storage that two operations keep, or keep as two views, counts once."""
    from measure import saved_bytes

    linear = nn.Linear(4, 8)
    x = torch.randn(5, 4, requires_grad=True)

    def function():
        y = linear(x)  # keeps x: 5 * 4
        return (y * y[:, :]).sum()  # keeps y twice: 5 * 8

    assert saved_bytes(function, linear) == 4 * (5 * 4 + 5 * 8)


def test_peers_have_our_weights(benchmarks):
    """The peers' backbones compute the maps of ours, and a changed weight is found out."""
    from contestants import backbones
    from speed import check_equal

    contest = backbones('atto', 1, 64, torch.device('cpu'))
    pairs = (('ours', 'mmpretrain'), ('ours, no output norms', 'timm'))
    for pair in pairs:
        assert check_equal(contest, pair, 1e-4) > 0
    for name in ('ours', 'timm'):
        with torch.no_grad():
            next(one for key, one in contest[name].model.named_parameters() if 'grn' in key)[:] += 1
    for pair in pairs:
        with pytest.raises(SystemExit, match='nothing was timed'):
            check_equal(contest, pair, 1e-4)


def test_one_table_leaves_the_others(benchmarks, tmp_path):
    """The file's tables are read back by name, whole."""
    from speed import HEAD, read_parts

    parts = {'fcmae': '## One\n\n<!-- fcmae -->\na\n\n| b |\n', 'loader': '## Two\n\n<!-- loader -->\nc\n'}
    path = tmp_path / 'speed.md'
    path.write_text(HEAD + '\n' + '\n'.join(parts.values()))
    assert read_parts(path) == parts


def test_parts_of_a_step(benchmarks):
    """Each part of a packed step is found, AdamW where it runs, and the decoder's MLP by its sites and channels."""
    from contestants import fcmae
    from parts import PARTS, part_of, seconds_by

    one = fcmae('atto', 'packed', True, 1, 64, 0.5, torch.device('cpu'))

    def parts_of(step, decoder):
        return seconds_by(lambda event: part_of(event, decoder), step)

    whole = parts_of(one.step, [4, 512])
    assert set(whole) == set(PARTS) and min(whole.values()) > 0
    assert set(PARTS) - set(parts_of(one.forward_backward, [4, 512])) == {'AdamW'}
    assert set(PARTS) - set(parts_of(one.step, [9, 512])) == {'response MLPs of the decoder'}


def test_kinds_of_operations(benchmarks):
    """Products and convolutions are found, forward and backward, in our backbone and in mmpretrain's; rows add up."""
    from contestants import backbones
    from parts import KINDS, kind_of, race_by
    from speed import parts_table

    contest = backbones('atto', 1, 64, torch.device('cpu'))
    found = race_by(kind_of, {name: contest[name].forward_backward for name in ('ours', 'mmpretrain')}, 2)
    assert all(set(one) == set(KINDS) and min(one.values()) > 0 for one in found.values())
    *rows, total = [line.split('|')[2:4] for line in parts_table(found, KINDS).splitlines()[2:]]
    for column in range(2):
        assert abs(sum(float(row[column]) for row in rows) - float(total[column])) < 0.0021  # of digits left out
