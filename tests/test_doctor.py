"""``python -m mmconvnextv2 doctor`` uses what is installed, and says what to do about what does not work."""

import os
import re
import subprocess
import sys

import pytest

from mmconvnextv2.commands import doctor
from mmconvnextv2.engine.devices import check_gpu
from mmconvnextv2.models.execution import EXECUTIONS


def run_doctor(folder):
    """Run the command with ``folder`` in front of the installed packages."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run(
        [sys.executable, '-m', 'mmconvnextv2', 'doctor'],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, 'PYTHONPATH': path, 'CUDA_VISIBLE_DEVICES': ''},
    )


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
        'sys.meta_path.insert(0, Block())\n'
    )
    run = run_doctor(tmp_path)
    assert run.returncode == 1 and '2 problems' in run.stdout  # mmseg needs it at its import
    assert 'BAD mmcv operators, cpu        ImportError: undefined symbol' in run.stdout
    assert 'MMCONVNEXTV2_OPERATORS=torchvision' in run.stdout


def test_two_distributions_of_the_same_files(tmp_path, monkeypatch):
    """A fork installed next to the package that it replaces is a problem, named with both versions."""
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


def problems(findings):
    return {finding.name: finding for finding in findings if finding.is_problem}


def test_packages_of_both_families(monkeypatch):
    """Upstream's mmdet on the fork's mmcv and mmengine is a problem that names all three; either alone is none."""
    forks = {fork: '9' for fork in doctor.FORKS.values()}
    mixed = {'torch': '2.11.0', 'mmdet': '3.3.0', 'onedl-mmcv': '2.3.6', 'onedl-mmengine': '0.10.12'}
    for installed, expected in ((mixed, ['mixed packages']), (forks, []), (dict.fromkeys(doctor.FORKS, '9'), [])):
        monkeypatch.setattr(doctor, 'installed_version', installed.get)
        found = problems(doctor.find_packages())
        assert list(found) == expected
    monkeypatch.setattr(doctor, 'installed_version', mixed.get)
    text = problems(doctor.find_packages())['mixed packages'].found
    assert text == 'mmdet of upstream with onedl-mmengine, onedl-mmcv'


def test_mmcv_lite_is_mmcv(monkeypatch):
    """mmcv-lite serves as mmcv; next to mmcv it is a problem, since both write the same files; without either the
    report says how to install one that compiles nothing."""

    def report(**installed):
        monkeypatch.setattr(
            doctor, 'installed_version', {key.replace('_', '-'): value for key, value in installed.items()}.get
        )
        return {finding.name: finding for finding in doctor.find_packages()}['mmcv']

    alone, both, none = report(mmcv_lite='2.1.0'), report(mmcv='2.1.0', mmcv_lite='2.1.0'), report()
    assert alone.found == 'mmcv-lite 2.1.0' and not alone.advice and not alone.is_problem
    assert both.is_problem and both.found == '2.1.0, and mmcv-lite 2.1.0' and 'uninstall' in both.advice
    assert not none.is_problem and "pip install 'mmconvnextv2[ops]'" in none.advice


def test_package_that_refuses_another_is_a_problem(tmp_path, monkeypatch):
    """A package whose import fails is named with its own message."""
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text("raise AssertionError('MMCV==2.3.6 is used but incompatible')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmdet']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(doctor, 'installed_version', {'mmdet': '3.3.0'}.get)
    [found] = doctor.find_imports()
    assert found.is_problem and found.found == 'AssertionError: MMCV==2.3.6 is used but incompatible'


def test_mmcv_for_the_cpu_beside_a_gpu_is_a_problem(monkeypatch):
    """Where a GPU is present mmcv has to serve it too: an operation that fails there is a problem with its remedy."""
    pytest.importorskip('mmcv', reason='needs mmcv: make env')
    if doctor.torch.cuda.is_available():
        pytest.skip('there is a GPU: the healthy environment shows that it is used')
    monkeypatch.setattr(doctor.torch.cuda, 'device_count', lambda: 2)
    found = problems(doctor.find_operations())
    assert list(found) == ['mmcv operators, cuda:0', 'mmcv operators, cuda:1']
    assert 'MMCONVNEXTV2_OPERATORS=torchvision' in found['mmcv operators, cuda:0'].advice


@pytest.mark.parametrize('hidden', [True, False])
def test_gpu_that_torch_does_not_see(tmp_path, monkeypatch, hidden):
    """A GPU that the driver lists and torch does not see is a problem, unless the user hid it."""
    if doctor.torch.cuda.is_available():
        pytest.skip('torch sees a GPU')
    script = '#!/bin/sh\ncase $1 in -L) echo "GPU 0: one" ;; *) echo 525.10 ;; esac\n'
    (tmp_path / 'nvidia-smi').write_text(script)
    (tmp_path / 'nvidia-smi').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    [found] = doctor.find_devices()
    assert found.is_problem is not hidden
    reason = (
        f'the driver 525.10 does not support CUDA {doctor.torch.version.cuda}, .* update the driver, or install a torch'
    )
    assert re.search('CUDA_VISIBLE_DEVICES' if hidden else reason, found.advice)
    if hidden:
        check_gpu()
    else:
        with pytest.raises(ValueError, match=f'a GPU cannot be used: {reason}.*CUDA_VISIBLE_DEVICES= runs on the CPU'):
            check_gpu()


def test_package_without_recipes_is_a_problem(tmp_path, monkeypatch):
    """The configs and tools that the package carries are counted; a package without them is incomplete."""
    [whole] = doctor.find_recipes()
    configs = len([path for path in (doctor.HOME.parent / 'configs').rglob('*.py')])
    assert not whole.is_problem and f'{configs} configs' in whole.found
    monkeypatch.setattr(doctor, 'HOME', tmp_path)
    assert list(problems(doctor.find_recipes())) == ['mmconvnextv2']
