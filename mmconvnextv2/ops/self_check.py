"""Comparison of the Triton kernels with the layers, before they first serve a device and dtype.

A kernel may fail where it was never run: no C compiler for Triton's launcher, no Python headers, an old driver, an
architecture that Triton rejects, or a wrong result. Then one warning says why, and torch's operations serve instead.
"""

import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .block import whole_block
from .depthwise import depthwise
from .depthwise_triton import depthwise_norm_sites, with_neighbours
from .dispatch import INTERPRETED, set_check
from .grid import Grid, cell_slots
from .residual import add_branch
from .response_mlp import fused_response_mlp, response_mlp_reference

# Largest error relative to the norm of the values in float64; TF32 and half precision are not errors. Where torch's
# operations err more, as in gradients that nearly cancel, kernels may err as is_worse allows.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
CHANNELS, SIDE = 8, 7
MOST_TIMES = 8 if INTERPRETED else 4  # Triton's interpreter cuts bits off where a GPU rounds to nearest


class Mismatch(RuntimeError):
    """A kernel computes something else than the layers."""


def kernels_pass(device: torch.device, dtype: torch.dtype, computed: torch.dtype) -> bool:
    """Run the kernels on a device and return whether they work; warn if they do not.

    Args:
        device (torch.device): Device with its index.
        dtype (torch.dtype): Dtype of sites and parameters.
        computed (torch.dtype): Dtype of the results, another one under autocast.
    """
    # Without the modes of callers, such as fake tensors and counters of operations
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        try:
            found = list(relative_errors(device, dtype, computed))
            if not all(error <= TOLERANCE[computed] for _, error in found):
                torchs = relative_errors(device, dtype, computed, triton=False)
                for (what, error), (_, by_torch) in zip(found, torchs):
                    if not error <= TOLERANCE[computed] and is_worse(error, by_torch):
                        raise Mismatch(f'{what} is off by {error:.1e}')
        except Exception as error:
            name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
            warnings.warn(
                f'Triton kernels are not used on {name} for {dtype} (computed in {computed}); torch operations serve, '
                f'more slowly: {_explain(error)}. MMCONVNEXTV2_KERNELS=torch makes this choice without a warning',
                stacklevel=2,
            )
            return False
    return True


def is_worse(error: float, by_torch: float) -> bool:
    """Return whether an error of kernels is too large, or NaN, where torch's operations have another."""
    return not error <= MOST_TIMES * by_torch + 1e-5


def _explain(error: Exception) -> str:
    """Return a one-line reason and what to do."""
    text = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    if isinstance(error, Mismatch):
        return f'{text}: please report this with the output of `python -m mmconvnextv2 doctor`'
    if 'C compiler' in text:
        return f'{text}: install one, such as gcc, or set CC'
    if isinstance(error, subprocess.CalledProcessError):
        return f'{text}: the C compiler failed; install the headers of Python (python3-dev)'
    return f'{text}: check the versions of the driver and of Triton'


def _wave(*shape: int, phase: float, device: torch.device) -> Tensor:
    """Return fixed values without a random generator, whose state belongs to the user; float64."""
    count = torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float64)
    return (count * 1.7 + phase).sin().view(shape)


def relative_errors(
    device: torch.device,
    dtype: torch.dtype,
    computed: torch.dtype,
    channels: int = CHANNELS,
    grids: Sequence[Grid] = (),
    triton: bool = True,
) -> Iterator[tuple[str, float]]:
    """Yield the errors of outputs and gradients relative to the norm of the layers' in float64, each with its name.

    Args:
        device (torch.device): Device with its index.
        dtype (torch.dtype): Dtype of sites and parameters.
        computed (torch.dtype): Dtype of the results, another one under autocast.
        channels (int): Channels. Defaults to 8.
        grids (Sequence[Grid]): Grids of two images. Defaults to (), small ones of a map and of cells; then the MLP runs
            with GRN's scale folded and unfolded, otherwise on the sites of the grids.
        triton (bool): Whether kernels compute, or torch's operations. Defaults to True.
    """
    cells = torch.tensor([[0, 1, 5], [2, 3, 4]], device=device)
    counts = [grid.num_sites for grid in grids] or [5, 9 * channels]
    hidden = 4 * channels
    of_depthwise = (channels, 1, SIDE, SIDE), *[(channels,)] * 3
    of_mlp = (hidden, channels), *[(hidden,)] * 3, (channels, hidden), (channels,)
    kept = torch.tensor([0.5, 1.25], device=device).view(2, 1, 1)
    few = Grid(5, 6, 4), Grid(4, 6, 16, visible_cells=cells), Grid(2, 3, 32, visible_cells=cells)
    for grid in grids or few:
        if triton and grid.is_packed:  # tables as a step has them
            slots = cell_slots(grid.cells, grid.height // grid.patch, grid.width // grid.patch)
            grid = with_neighbours(replace(grid, cell_slots=slots))
        shapes = (2, grid.num_sites, channels), *of_depthwise

        def layers(sites, weight, bias, norm_weight, norm_bias, grid=grid):
            conv, norm = _modules(weight, bias, norm_weight, norm_bias)
            return depthwise(sites, replace(grid, kernels='layers'), conv, norm)

        def kernels(sites, weight, bias, norm_weight, norm_bias, grid=grid):
            conv, norm = _modules(weight, bias, norm_weight, norm_bias)
            if triton:
                return depthwise_norm_sites(sites, conv, norm, grid)
            return depthwise(sites, replace(grid, kernels='torch'), conv, norm)

        yield from _compare('the depthwise convolution', kernels, layers, shapes, device, dtype, computed)

        def layers_of_block(sites, *parameters, grid=grid, layers=layers):
            return sites + response_mlp_reference(layers(sites, *parameters[:4]), *parameters[4:]) * kept

        def kernels_of_block(sites, *parameters, grid=grid, kernels=kernels):
            if not triton:
                branch = fused_response_mlp(kernels(sites, *parameters[:4]), *parameters[4:], triton=False)
                return add_branch(sites, branch, kept)
            weight1, bias1, gamma, beta, weight2, bias2 = parameters[4:]
            expand, project = SimpleNamespace(weight=weight1, bias=bias1), SimpleNamespace(weight=weight2, bias=bias2)
            norm = SimpleNamespace(gamma=gamma, beta=beta, eps=1e-6)
            return whole_block(sites, grid, *_modules(*parameters[:4]), expand, norm, project, kept)

        shapes = *shapes, *of_mlp
        yield from _compare('a block', kernels_of_block, layers_of_block, shapes, device, dtype, computed)
    for num_sites in counts:
        shapes = (2, num_sites, channels), *of_mlp

        def fused(*tensors):
            return fused_response_mlp(*tensors, triton=triton)

        yield from _compare('the response MLP', fused, response_mlp_reference, shapes, device, dtype, computed)


def _modules(weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> tuple[nn.Conv2d, nn.LayerNorm]:
    """Return layers with these tensors as parameters."""
    with torch.device('meta'):  # initialising them draws no random numbers
        conv = nn.Conv2d(len(weight), len(weight), SIDE, padding=SIDE // 2, groups=len(weight))
        norm = nn.LayerNorm(len(weight), eps=1e-6)
    for module, tensors in ((conv, (weight, bias)), (norm, (norm_weight, norm_bias))):
        for name, tensor in zip(('weight', 'bias'), tensors, strict=True):
            delattr(module, name)
            setattr(module, name, tensor)
    return conv, norm


def _compare(what, ours, theirs, shapes, device, dtype, computed) -> Iterator[tuple[str, float]]:
    given = [_wave(*shape, phase=place, device=device).to(dtype) for place, shape in enumerate(shapes)]
    found, wanted = ([one.to(kind).requires_grad_() for one in given] for kind in (dtype, torch.float64))
    with torch.autocast(device.type, computed, enabled=computed != dtype):
        output = ours(*found)
    with torch.autocast(device.type, enabled=False):
        reference = theirs(*wanted)
    noise = _wave(*reference.shape, phase=0.5, device=device)
    yield what, _error(output.detach(), reference.detach())
    gradients = zip(
        torch.autograd.grad(output, found, noise.to(output.dtype)), torch.autograd.grad(reference, wanted, noise)
    )
    for one, other in gradients:
        yield f'a gradient of {what}', _error(one, other)


def _error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).norm() / reference.norm())


set_check(kernels_pass)
