"""The front door of depthwise convolution over sites; ``dispatch.choose_depthwise`` says which code runs."""

from torch import Tensor, nn

from .cells import gather, scatter
from .depthwise_cpu import depthwise_map
from .depthwise_packed import depthwise_packed
from .depthwise_triton import depthwise_norm_sites, depthwise_sites
from .dispatch import choose_depthwise
from .grid import Grid, map_to_sites, sites_to_map


def depthwise(sites: Tensor, grid: Grid, conv: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
    """Convolve each channel of sites over its neighbours, and normalise the result site by site.

    Sites of a whole map are read as they are; of packed sites, those of masked cells read as zero.

    Args:
        sites (Tensor): (B, N, C), packed or in raster order as the grid says.
        grid (Grid): Where they are.
        conv (nn.Conv2d): A depthwise layer that keeps the size.
        norm (nn.Module, optional): Normalises (B, N, C). Defaults to None.

    Returns:
        Tensor: (B, N, C).

    Raises:
        RuntimeError: By torch, when a second derivative is asked for; ``kernels='layers'`` has one.
    """
    chosen = choose_depthwise(sites, grid, conv, norm)
    if chosen == 'triton+norm':
        assert isinstance(norm, nn.LayerNorm)  # choose_depthwise has looked
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
