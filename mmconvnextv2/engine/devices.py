"""What the GPU can do, and why torch does not use it."""

import os
import subprocess

import torch

from ..utils.errors import UserError


def has_bf16() -> bool:
    """Return whether the device computes in bfloat16: all CPUs, and GPUs that do not have to emulate it."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _ask_driver(*arguments: str) -> str:
    try:
        return subprocess.run(['nvidia-smi', *arguments], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


def lists_gpu() -> bool:
    """Return whether the driver lists a GPU, whether torch can use it or not."""
    return 'GPU' in _ask_driver('-L')


def unusable_gpu() -> str | None:
    """Return in one line why torch cannot use the GPU that the driver lists, and what to do.

    Returns:
        str, optional: The line; None if torch can use the GPU, if the driver lists none, or if the user hid it.
    """
    if torch.cuda.is_available() or 'CUDA_VISIBLE_DEVICES' in os.environ or not lists_gpu():
        return None
    if torch.version.cuda is None:
        return f'torch {torch.__version__} is built without CUDA: install one that is'
    version = _ask_driver('--query-gpu=driver_version', '--format=csv,noheader').split('\n')[0] or 'of unknown version'
    return (
        f'the driver {version} does not support CUDA {torch.version.cuda}, which torch {torch.__version__} is built '
        'for: update the driver, or install a torch built for an older CUDA'
    )


def check_gpu() -> None:
    """Raise ``ValueError`` if there is a GPU that torch cannot use, rather than train on the CPU.

    With a torch built without CUDA, training on the CPU is intended.
    """
    problem = unusable_gpu() if torch.version.cuda else None
    if problem:
        raise UserError(f'a GPU cannot be used: {problem}. CUDA_VISIBLE_DEVICES= runs on the CPU')
