"""The light decoder of FCMAE and its loss (arXiv 2301.00808, section 3.1).

Upstream computes the prediction of every cell and masks the loss; here the prediction layer runs on hidden cells only.
Suffixes: B images, M hidden cells, D decoder channels, C picture channels.
"""
from typing import Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..backbone import ConvNeXtV2Block
from ..execution import CELL, get_execution
from ..execution.base import Grid, map_to_sites, sites_to_map
from ..execution.packed import gather
from ..layers import statistics_dtype

INIT_CFG = dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)


@MODELS.register_module()
class FCMAEDecoder(BaseModule):
    """Project encoder features, put the mask token at hidden cells, and run ConvNeXt V2 blocks on the whole map.

    Args:
        in_channels (int): Channels of the encoder's last stage.
        channels (int): D. Defaults to 512.
        depth (int): Number of blocks. Defaults to 1.
    """

    def __init__(self, in_channels: int, channels: int = 512, depth: int = 1) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.channels = channels
        self.proj = nn.Conv2d(in_channels, channels, 1)
        self.mask_token = nn.Parameter(torch.zeros(channels))
        self.blocks = nn.ModuleList(ConvNeXtV2Block(channels) for _ in range(depth))

    def init_weights(self) -> None:
        """Draw weights and the mask token with standard deviation 0.02."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Tensor, visible_cells: Tensor) -> Tensor:
        """Decode (B, Cin, h, w) with visible cells (B, K) to a map (B, D, h, w)."""
        height, width = features.shape[-2:]
        sites = map_to_sites(self.proj(features))  # (B, h * w, D)
        hidden = torch.ones(sites.shape[:2], dtype=torch.bool, device=sites.device).scatter(1, visible_cells, False)
        sites = torch.where(hidden.unsqueeze(-1), self.mask_token.to(sites.dtype), sites)
        dense, grid = get_execution('dense', masking=False), Grid(height, width, stride=CELL)
        for block in self.blocks:
            sites = block(sites, grid, dense)
        return sites_to_map(sites, grid)


@MODELS.register_module()
class FCMAEHead(BaseModule):
    """Predict the normalised pixels of hidden cells.

    Args:
        in_channels (int): D. Defaults to 512.
        image_channels (int): C. Defaults to 3.
        norm_pix (bool): Normalise the target by the mean and the unbiased variance of its cell. Defaults to True.
    """

    def __init__(self, in_channels: int = 512, image_channels: int = 3, norm_pix: bool = True) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.norm_pix = norm_pix
        self.pred = nn.Linear(in_channels, CELL * CELL * image_channels)

    def forward(self, decoded: Tensor, hidden_cells: Tensor) -> Tensor:
        """Predict (B, D, h, w) at hidden cells (B, M): (B, M, 32 * 32 * C), pixels in raster order, channels last."""
        sites = map_to_sites(decoded)  # (B, h * w, D)
        index = hidden_cells.unsqueeze(-1).expand(-1, -1, sites.shape[-1])
        return self.pred(sites.gather(1, index))

    def target(self, images: Tensor, hidden_cells: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return the target (B, M, 32 * 32 * C) of hidden cells with the mean and the deviation (B, M, 1) it was
        normalised by."""
        cells = gather(images, hidden_cells, CELL).reshape(*hidden_cells.shape, -1)
        cells = cells.to(statistics_dtype(cells.dtype))
        if not self.norm_pix:
            return cells, torch.zeros_like(cells[..., :1]), torch.ones_like(cells[..., :1])
        variance, mean = torch.var_mean(cells, dim=-1, keepdim=True)
        deviation = (variance + 1e-6).sqrt()
        return (cells - mean) / deviation, mean, deviation

    def loss(self, decoded: Tensor, images: Tensor, hidden_cells: Tensor) -> Tensor:
        """Return the mean squared error over the pixels of hidden cells, a scalar."""
        target = self.target(images, hidden_cells)[0]
        return F.mse_loss(self(decoded, hidden_cells).to(target.dtype), target)
