"""The Triton kernels equal torch's operations: through Triton's interpreter anywhere, compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = str(Path(__file__).with_name('kernel_cases.py'))


def run_cases(**environment):
    """Run the cases in an interpreter of their own: Triton chooses how to run kernels when it is imported."""
    pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', CASES]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_interpreted():
    """Every case holds on the CPU through Triton's interpreter."""
    run_cases(TRITON_INTERPRET='1')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU; test_interpreted runs the same cases')
def test_compiled():
    """Every case holds for the compiled kernels on a GPU."""
    run_cases(TRITON_INTERPRET='0')
