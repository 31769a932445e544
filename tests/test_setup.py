"""The set-up refuses a machine it cannot work on in one line, before anything is downloaded or written."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / 'requirements' / 'install.sh'
TOOLS = ('awk bash c++ cat cut df dirname env grep head ls mkdir rm sed sha256sum sleep tail touch').split()


@pytest.fixture
def machine(tmp_path):
    """Return a function that runs the set-up with only the named tools on PATH, some replaced by scripts."""
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    for tool in TOOLS:
        (bin_folder / tool).symlink_to(shutil.which(tool))
    base = Path(sys.base_prefix) / 'bin' / 'python3'

    def run(python=base, without=(), **replaced):
        for tool in without:
            (bin_folder / tool).unlink()
        for tool, body in replaced.items():
            (bin_folder / tool).unlink(missing_ok=True)
            (bin_folder / tool).write_text(f'#!/bin/bash\n{body}\n')
            (bin_folder / tool).chmod(0o755)
        environment = {'PATH': str(bin_folder), 'PYTHON': str(python), 'HOME': str(tmp_path)}
        return subprocess.run(['bash', SCRIPT, tmp_path / 'venv'], env=environment, capture_output=True, text=True,
                              timeout=60)

    return run


def assert_refused(result, tmp_path, *words):
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 1 and len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines
    assert not (tmp_path / 'venv' / 'bin').exists()


def test_wrong_python(machine, tmp_path):
    """Another Python is named with its version and with what is needed."""
    result = machine(python='old-python', **{'old-python': 'echo 3.9'})
    assert_refused(result, tmp_path, 'old-python', '3.9', '3.11', 'PYTHON=')


def test_missing_python(machine, tmp_path):
    """An interpreter that is not there is named."""
    assert_refused(machine(python='no-python'), tmp_path, 'no-python', 'PYTHON=')


def test_missing_compiler(machine, tmp_path):
    """Without a C++ compiler the message says which package has one."""
    assert_refused(machine(without=['c++']), tmp_path, 'c++', 'g++')


def test_no_disk(machine, tmp_path):
    """A full disk is told with what is free and what is needed."""
    result = machine(df='echo; echo "disk 100 97 3145728 97% /"')
    assert_refused(result, tmp_path, '3 GiB', '12 GiB', 'VENV=')


def test_foreign_folder(machine, tmp_path):
    """A folder that is no virtual environment is left as it is."""
    (tmp_path / 'venv').mkdir()
    (tmp_path / 'venv' / 'thesis.txt').write_text('years of work')
    assert_refused(machine(), tmp_path, 'not a virtual environment', 'VENV=')
    assert os.listdir(tmp_path / 'venv') == ['thesis.txt']
