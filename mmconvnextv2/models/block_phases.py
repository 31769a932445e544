"""A ConvNeXt V2 block in two phases, for images that are visited part by part.

GRN needs the norms of a whole image before it can scale its first site. Phase one computes the hidden features of a
part, whose squares are summed over all parts; phase two scales them by the norms and completes the block. Both use the
block's own layers.
"""

import torch.nn.functional as F
from torch import Tensor

from ..ops.grid import Grid
from ..utils.errors import UserError
from .convnext_v2 import ConvNeXtV2Block
from .execution import Execution
from .response_norms import GRN, BatchNorm, ChannelNorm, LocalResponseNorm

BY_SITE = (LocalResponseNorm, BatchNorm, ChannelNorm)  # in evaluation mode


def reads_image(block: ConvNeXtV2Block) -> bool:
    """Return whether the block's response norm depends on all sites of an image.

    Raises:
        ValueError: If it does, and is not the published GRN.
    """
    norm = block.grn
    if norm is None or isinstance(norm, BY_SITE):
        return False
    if isinstance(norm, GRN) and norm.is_published:
        return True
    raise UserError(f'norms over an image in parts are those of the published GRN, not of {type(norm).__name__}')


def hidden_features(block: ConvNeXtV2Block, sites: Tensor, grid: Grid, execution: Execution) -> Tensor:
    """Phase one: return the features (B, N, 4C) of sites (B, N, C) before GRN.

    A site's features are those of the whole image if its 7x7 neighbours within the image are among the sites.
    """
    branch = execution.depthwise(sites, grid, block.depthwise_conv, block.norm)
    return F.gelu(block.pointwise_conv1(branch))


def finish_block(block: ConvNeXtV2Block, sites: Tensor, hidden: Tensor, norm: Tensor | None) -> Tensor:
    """Phase two: return the block's output (B, N, C).

    Args:
        block (ConvNeXtV2Block): Block in evaluation mode.
        sites (Tensor): Its input (B, N, C).
        hidden (Tensor): Features of these sites, from :func:`hidden_features`, (B, N, 4C).
        norm (Tensor, optional): GRN's norms over all sites of the image, (B, 1, 4C). None for blocks of which
            :func:`reads_image` is False.
    """
    if norm is not None:
        assert isinstance(block.grn, GRN)  # which reads_image has checked
        hidden = block.grn.apply_norm(hidden, norm)
    elif block.grn is not None:
        hidden = block.grn(hidden)
    branch = block.pointwise_conv2(hidden)
    return sites + (branch if block.gamma is None else branch * block.gamma)
