"""``python -m mmconvnextv2.doctor`` uses what is installed, and says what to do about what does not work."""
import os
import subprocess
import sys

import pytest

from mmconvnextv2 import doctor
from mmconvnextv2.execution import EXECUTIONS


def run_doctor(folder):
    """Run the command with ``folder`` in front of the installed packages."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run([sys.executable, '-m', 'mmconvnextv2.doctor'], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''})


def test_healthy_environment(tmp_path):
    """In the environment of this test every execution works, no problem is found, and the exit status is 0."""
    run = run_doctor(tmp_path)
    assert run.returncode == 0 and run.stdout.endswith('no problem found\n'), run.stdout + run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    for name in set(EXECUTIONS) - {'minkowski'}:
        assert ['ok', f'execution={name},', 'cpu', 'works'] in lines


def test_broken_operations_are_a_problem(tmp_path):
    """An mmcv whose compiled module cannot be loaded, as one of another torch, is named with what to do; status 1."""
    pytest.importorskip('mmcv', reason='needs mmcv: make env')
    (tmp_path / 'sitecustomize.py').write_text(
        'import sys\n'
        'class Block:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "mmcv._ext":\n'
        '            raise ImportError("undefined symbol: _ZN2at4_ops")\n'
        'sys.meta_path.insert(0, Block())\n')
    run = run_doctor(tmp_path)
    assert run.returncode == 1 and '1 problems' in run.stdout
    assert 'BAD mmcv operations, CPU       ImportError: undefined symbol' in run.stdout
    assert 'reinstall it' in run.stdout


def test_two_distributions_of_the_same_files(tmp_path, monkeypatch):
    """A fork beside the package that it replaces is a problem, named with both versions."""
    info = tmp_path / 'onedl_mmengine-0.12.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: onedl-mmengine\nVersion: 0.12.0\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = [finding for finding in doctor.find_packages() if finding.is_problem]
    assert found.name == 'mmengine' and 'onedl-mmengine 0.12.0' in found.found and 'uninstall' in found.advice


def test_broken_execution_is_a_problem(monkeypatch):
    """An execution that raises is a problem of its own; the others are still looked at."""
    def broken(self, *arguments):
        raise RuntimeError('no kernel image')
    monkeypatch.setattr(EXECUTIONS['packed'], 'enter', broken)
    found = {finding.name: finding for finding in doctor.find_executions()}
    bad = {name for name, finding in found.items() if finding.is_problem}
    assert 'execution=packed, cpu' in bad and 'no kernel image' in found['execution=packed, cpu'].found
    assert not found['execution=masked, cpu'].is_problem
