"""Where ``mmcv._ext`` comes from: a compiled module where mmcv has one, otherwise torchvision, in every process."""

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from mmconvnextv2.mmcv_operators import install

ROOT = Path(__file__).parents[2]
pytest.importorskip('mmcv', reason='needs mmcv: make env')
COMPILED = PathFinder.find_spec('mmcv._ext', __import__('mmcv').__path__) is not None
lite = pytest.mark.skipif(COMPILED, reason='needs an mmcv without compiled operators: OPS=torchvision make env')
# Forget what a .pth file of the environment registered
ALONE = "import sys; sys.meta_path[:] = [one for one in sys.meta_path if not hasattr(one, 'serves')]\n"
SERVES = 'import mmcv._ext as ext; print(ext.get_compiler_version())'
FAKE = "def get_compiler_version(): return 'GCC'\nget_compiling_cuda_version = get_compiler_version\n"


def run(code, folder, *path, **environment):
    """Run code in an interpreter of its own, with folders in front of what is installed."""
    environment = {
        **{key: value for key, value in os.environ.items() if key != 'MMCONVNEXTV2_OPERATORS'},
        'PYTHONPATH': os.pathsep.join(map(str, [*path, ROOT])),
        **environment,
    }
    return subprocess.run([sys.executable, '-c', code], cwd=folder, env=environment, capture_output=True, text=True)


def fake_mmcv(folder, content):
    """Write an mmcv with a "compiled" module."""
    (folder / 'mmcv').mkdir()
    (folder / 'mmcv' / '__init__.py').write_text("__version__ = '2.1.0'\n")
    (folder / 'mmcv' / '_ext.py').write_text(content)
    return folder


def without_fork(printed):
    """Leave out what the OneDL fork's mmdet prints by itself."""
    return printed.replace('Could not import OneDL\n', '')


@lite
def test_package_first_is_enough(tmp_path):
    """Importing the package makes mmdet's models importable, and prints nothing."""
    done = run(ALONE + 'import mmconvnextv2, mmdet.models', tmp_path)
    assert done.returncode == 0 and without_fork(done.stdout) == '', done.stderr


@lite
def test_without_the_package_it_fails_as_before(tmp_path):
    """Nothing but an import of the package, or the opt-in, registers the operators."""
    done = run(ALONE + 'import mmcv.ops', tmp_path)
    assert "No module named 'mmcv._ext'" in done.stderr


@pytest.mark.parametrize(
    'choice, printed',
    [
        ({}, 'GCC'),
        ({'MMCONVNEXTV2_OPERATORS': 'compiled'}, 'GCC'),
        ({'MMCONVNEXTV2_OPERATORS': 'torchvision'}, 'torchvision'),
    ],
)
def test_compiled_operators_win_unless_told_otherwise(tmp_path, choice, printed):
    """A compiled module is taken where there is one; the switch takes torchvision's."""
    done = run(ALONE + 'import mmconvnextv2\n' + SERVES, tmp_path, fake_mmcv(tmp_path, FAKE), **choice)
    assert done.stdout.strip() == printed, done.stderr


def test_broken_compiled_operators_fail_as_without_the_package(tmp_path):
    """A compiled module that does not load is not hidden by others."""
    broken = fake_mmcv(tmp_path, "raise ImportError('undefined symbol: _ZN2at4_ops')")
    done = run(ALONE + 'import mmconvnextv2\n' + SERVES, tmp_path, broken)
    assert done.returncode == 1 and 'undefined symbol: _ZN2at4_ops' in done.stderr


@lite
def test_unknown_choice_and_missing_torchvision(tmp_path):
    """Each ends in a sentence that says what to do."""
    done = run('import mmconvnextv2\n' + SERVES, tmp_path, MMCONVNEXTV2_OPERATORS='cuda')
    assert "MMCONVNEXTV2_OPERATORS='cuda' is unknown" in done.stderr and 'compiled' in done.stderr
    gone = (
        'import importlib.util as u; find = u.find_spec\n'
        "u.find_spec = lambda name, *rest: None if name == 'torchvision' else find(name, *rest)\n"
    )
    done = run(ALONE + gone + 'import mmconvnextv2\n' + SERVES, tmp_path)
    assert 'pip install torchvision' in done.stderr


@lite
def test_missing_operator_says_how_to_get_it(tmp_path):
    """An operator that torchvision lacks raises when it is called, with its name and the way to compiled mmcv; names
    that no module may invent stay missing."""
    import torch
    from mmcv.ops import carafe

    with pytest.raises(RuntimeError, match=r'carafe_forward of mmcv.ops needs compiled mmcv.*OPS=compiled make env'):
        carafe(torch.randn(1, 4, 4, 4), torch.randn(1, 9, 8, 8), 3, 1, 2)
    import mmcv._ext

    assert not hasattr(mmcv._ext, '__path__') and not hasattr(mmcv._ext, '__wrapped__')


@lite
def test_spawned_worker_finds_the_operators(tmp_path):
    """A data loader's worker that is spawned reads a data set whose module imports mmcv.ops."""
    (tmp_path / 'own_data.py').write_text(
        'import mmcv.ops\nfrom torch.utils.data import Dataset\n'
        'class Data(Dataset):\n    def __len__(self): return 2\n    def __getitem__(self, index): return index\n'
    )
    script = tmp_path / 'script.py'
    script.write_text(
        ALONE + 'import mmconvnextv2\nfrom own_data import Data\nfrom torch.utils.data import DataLoader\n'
        'if __name__ == "__main__":\n'
        '    print([int(one) for one in DataLoader(Data(), None, num_workers=1, multiprocessing_context="spawn")])\n'
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )
    assert done.stdout.strip() == '[0, 1]', done.stderr


@lite
def test_opt_in_serves_scripts_that_import_mmdet_first(tmp_path):
    """With the two files, mmdet may come first, torch is not imported at a start, and the package beside registers
    nothing twice; removed, nothing is left."""
    install.main([], folder=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {install.PTH, f'{install.MODULE}.py'}
    start = ALONE + f'import site; site.addsitedir({str(tmp_path)!r}); assert "torch" not in sys.modules\n'
    done = run(
        start + 'import mmdet.models, mmconvnextv2\nprint(sum(hasattr(one, "serves") for one in sys.meta_path))',
        tmp_path,
    )
    assert done.returncode == 0 and without_fork(done.stdout) == '1\n', done.stderr
    install.main(['--remove'], folder=str(tmp_path))
    assert list(tmp_path.glob('*.p*')) == []


def test_environment_report_names_torchvision(tmp_path):
    """mmengine's and mmcv's reports of the environment know what serves."""
    from mmcv.utils import collect_env

    from mmconvnextv2.mmcv_operators import serving_operators

    found = collect_env()
    expected = 'compiled' if COMPILED else 'torchvision'
    assert serving_operators().startswith(expected) and (found['MMCV Compiler'] == 'torchvision') is not COMPILED
