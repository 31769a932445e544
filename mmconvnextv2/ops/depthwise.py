"""Depthwise convolution over sites; ``dispatch.choose_depthwise`` chooses the implementation."""

from functools import partial

from torch import Tensor, nn

from .cells import gather, scatter
from .depthwise_cpu import depthwise_map
from .depthwise_packed import depthwise_packed
from .depthwise_triton import depthwise_norm_sites, depthwise_sites
from .dispatch import choose_depthwise, times_kernels
from .grid import Grid, map_to_sites, sites_to_map
from .tuning import faster


def depthwise(sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
    """Convolve each channel of sites over its neighbours, and normalise the result site by site.

    On a packed grid, masked neighbours read as zero. On a whole map all neighbours are read unchanged.

    Args:
        sites (Tensor): Sites of shape (B, N, C), packed or in raster order, as ``grid`` says.
        grid (Grid): Geometry of the sites.
        conv (nn.Conv2d): Depthwise layer that keeps the size.
        norm (nn.Module, optional): Layer that normalises (B, N, C). Defaults to None.

    Returns:
        Tensor: Sites of shape (B, N, C).

    Raises:
        RuntimeError: By torch, if a second derivative is requested; ``kernels='layers'`` supports it.
    """
    chosen = choose_depthwise(sites, grid, conv, norm)
    if chosen.startswith('triton') and times_kernels(grid):
        runs = {name: partial(_run, name, grid=grid, conv=conv, norm=norm) for name in (chosen, 'layer')}
        parameters = [*conv.parameters(), *(() if norm is None else norm.parameters())]
        chosen = faster(f'depthwise, patch {grid.patch if grid.is_packed else 0}', sites, parameters, runs)
    return _run(chosen, sites, grid, conv, norm)


def _run(chosen: str, sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None) -> Tensor:
    """Run the implementation that ``choose_depthwise`` names."""
    if chosen == 'triton+norm':
        assert isinstance(norm, nn.LayerNorm)  # checked by choose_depthwise
        return depthwise_norm_sites(sites, conv, norm, grid)
    if chosen == 'triton':
        convolved = depthwise_sites(sites, conv, grid)
    elif chosen == 'cpu' and grid.is_packed:
        convolved = depthwise_packed(sites, conv.weight, conv.bias, grid)
    elif chosen == 'cpu':
        convolved = map_to_sites(depthwise_map(sites_to_map(sites, grid), conv.weight, conv.bias))
    elif grid.is_packed:
        convolved = gather(conv(scatter(sites, grid)), grid.cells, grid.patch)
    else:
        convolved = map_to_sites(conv(sites_to_map(sites, grid)))
    return convolved if norm is None else norm(convolved)
