"""A mistake of the user ends a command with one line, however Python and the package are installed; a bug does not."""

import compileall
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import mmconvnextv2
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.utils.errors import ExistingFileError, FileError, MissingFileError, RunError, UserError

ROOT = Path(mmconvnextv2.__file__).parents[1]
BUILTIN = {
    UserError: ValueError,
    MissingFileError: FileNotFoundError,
    ExistingFileError: FileExistsError,
    FileError: OSError,
    RunError: RuntimeError,
}


class Image(torch.utils.data.Dataset):
    """A data set that raises an error at its second item."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise self.error('b.png cannot be read:\n    replace it')
        return index


@pytest.mark.parametrize('error', BUILTIN)
@pytest.mark.parametrize('workers', [0, 1])
def test_errors_of_ours_are_one_line(error, workers):
    """Raised here or in a data loader's worker, an error of ours is one line, and what it was before for callers."""
    assert issubclass(error, BUILTIN[error])
    with pytest.raises(SystemExit, match='^error: b.png cannot be read: replace it$'):
        run_tool(lambda args: list(DataLoader(Image(error), num_workers=workers)), Namespace(traceback=False))


def test_bugs_show_their_traceback():
    """A ValueError that nobody raised on purpose is not taken for a mistake of the user's, raised from our code too."""
    from mmconvnextv2.models.convnext_v2 import ConvNeXtV2

    with pytest.raises(TypeError):
        run_tool(lambda args: ConvNeXtV2(arch=dict(depths=(1, 1, 1, 1), channels=None)), Namespace(traceback=False))
    with pytest.raises(AttributeError, match='NoneType'):  # as an unreadable image is without assertions, elsewhere
        run_tool(lambda args: None.shape, Namespace(traceback=False))
    with pytest.raises(ValueError, match='invalid literal'):
        run_tool(lambda args: int('x'), Namespace(traceback=False))


@pytest.mark.parametrize('options', [[], ['-O']], ids=['plain', '-O'])
def test_without_sources_and_asserts(tmp_path, options):
    """Installed as byte code alone, and with assertions off, a stated mistake is one line all the same."""
    package = tmp_path / 'mmconvnextv2'
    shutil.copytree(Path(mmconvnextv2.__file__).parent, package, ignore=shutil.ignore_patterns('__pycache__'))
    compileall.compile_dir(package, quiet=2, legacy=True)
    for source in package.rglob('*.py'):
        if '.mim' not in source.parts:
            source.unlink()
    run = subprocess.run(
        [sys.executable, *options, '-m', 'mmconvnextv2', 'convert-checkpoint', 'nowhere.pth', 'a.pth'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    )
    assert run.returncode == 1 and run.stderr.strip().splitlines()[-1].startswith("error: checkpoint 'nowhere.pth'")
    assert 'Traceback' not in run.stderr


def test_missing_module_of_a_config(tmp_path):
    """A module that a config's custom_imports cannot import is named with what it lacks, however deep that lies."""
    (tmp_path / 'own_module.py').write_text('import numpy, module_that_nobody_has\n')
    (tmp_path / 'mine.py').write_text("custom_imports = dict(imports=['own_module'], allow_failed_imports=False)\n")
    run = subprocess.run(
        [sys.executable, '-m', 'mmconvnextv2', 'train', 'mine.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert "No module named 'module_that_nobody_has'. Install what is missing" in run.stderr.strip().splitlines()[-1]
