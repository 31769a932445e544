"""The Triton kernels equal torch's operations: through Triton's interpreter anywhere, compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmconvnextv2.engine.devices import lists_gpu

CASES = str(Path(__file__).with_name('kernel_cases.py'))


def run_cases(**environment):
    """Run the cases in an interpreter of their own: Triton chooses how to run kernels when it is imported."""
    pytest.importorskip('triton', reason='Triton, which torch brings along on Linux, is not installed')
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '--noconftest', CASES]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_interpreted():
    """Every case holds on the CPU through Triton's interpreter."""
    run_cases(TRITON_INTERPRET='1')


def test_compiled():
    """Every case holds for the compiled kernels on a GPU."""
    if not lists_gpu():
        pytest.skip('needs a GPU; test_interpreted runs the same cases')
    gpus = os.environ['MMCONVNEXTV2_TEST_GPUS']
    run_cases(TRITON_INTERPRET='0', CUDA_VISIBLE_DEVICES='0' if gpus == 'all' else gpus)
