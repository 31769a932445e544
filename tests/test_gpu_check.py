"""The GPU check runs from end to end without a GPU, and survives items that die, hang or need what is missing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / 'benchmarks' / 'gpu_check.py')


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import gpu_check

    yield gpu_check
    sys.modules.pop('gpu_check')


@pytest.mark.slow
def test_narrow_check(check, tmp_path):
    """With narrow shapes on the CPU, in Triton's interpreter, the kernels are as exact as torch's operations, and steps
    of models are timed; items that need a GPU say so; the report has a line for each."""
    pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
    chosen = [
        'machine',
        'right, base',
        'twice',
        'side stream',
        'inductor',
        'backbone Base, 1024 px, batch 2, mmpretrain',
    ]
    out, environment = tmp_path / 'rows.jsonl', {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, SCRIPT, '--device', 'cpu', '--narrow', '--out', str(out), '--only', *chosen]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    rows = {row['item']: row for row in map(json.loads, out.read_text().splitlines())}
    assert run.returncode == 0 and len(rows) == len(chosen), run.stdout + run.stderr
    assert rows.pop('side stream, graph capture')['skipped'] == 'needs a GPU'
    assert all(row['ok'] for row in rows.values())
    exact = rows['right, base']
    assert 0 < exact['bf16_kernels'] < 0.05 and 0 < exact['bf16_torch'] < 0.05
    assert rows['backbone Base, 1024 px, batch 2, mmpretrain']['images_per_s'] > 0
    table = check.report(out)
    assert table.count('\n| ') == len(chosen) + 2 and '| skipped: skipped needs a GPU |' in table


def follow(check, tmp_path, code, seconds=60.0, limit=60.0):
    """Follow a worker that runs ``code``, with three items of ``seconds`` each."""
    command = [
        sys.executable,
        '-uc',
        f'import json, sys, time\ndef row(n): print(json.dumps(dict(item=n, ok=True)))\n{code}',
    ]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return check.follow(worker, [(name, seconds) for name in 'abc'], tmp_path / 'rows', time.monotonic() + limit)


def test_worker_that_dies_or_hangs(check, tmp_path, monkeypatch):
    """Rows of finished items are kept, and the reason names the status, the item's limit, or the end of the check."""
    monkeypatch.setattr(check, 'GRACE', 3)
    rows, why = follow(check, tmp_path, "row('a'); print('noise'); sys.exit(3)")
    assert [row['item'] for row in rows] == ['a'] and why == 'its process ended with status 3'
    rows, why = follow(check, tmp_path, "row('a'); row('b'); time.sleep(600)", seconds=0.5)
    assert [row['item'] for row in rows] == ['a', 'b'] and why == 'took longer than 0.5 s'
    rows, why = follow(check, tmp_path, "row('a'); time.sleep(600)", limit=3.0)
    assert [row['item'] for row in rows] == ['a'] and why == 'the check ran out of time'
    rows, why = follow(check, tmp_path, "row('a'); row('b'); row('c')")
    assert [row['item'] for row in rows] == ['a', 'b', 'c'] and why is None
    assert len((tmp_path / 'rows').read_text().splitlines()) == 7


def test_without_a_gpu():
    """Where torch sees no GPU, one line says what to do, and nothing is run."""
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.startswith('error: torch sees no GPU.') and 'doctor' in run.stderr


def test_items_after_a_death_still_run(check, tmp_path, monkeypatch):
    """A new worker goes on after the item in which the last one died."""
    script = tmp_path / 'worker.py'
    script.write_text(
        'import json, sys\n'
        'names = sys.argv[sys.argv.index("--worker") + 1:]\n'
        'if not names:\n    print(json.dumps([[n, 30] for n in "abc"]))\n'
        'for name in names:\n'
        '    if name == "b":\n        sys.exit(9)\n'
        '    print(json.dumps(dict(item=name, ok=name == "a", **({} if name == "a" else dict(skipped="no")))))\n'
    )
    monkeypatch.setattr(check, '__file__', str(script))
    monkeypatch.setattr(sys, 'argv', ['gpu_check.py', '--device', 'cpu', '--out', str(tmp_path / 'rows')])
    assert not check.run_items(check.arguments(), tmp_path / 'rows')
    rows = [json.loads(line) for line in (tmp_path / 'rows').read_text().splitlines()]
    assert [(row['item'], row['ok']) for row in rows] == [('a', True), ('b', False), ('c', False)]
    assert rows[1]['error'] == 'its process ended with status 9' and rows[2]['skipped'] == 'no'
