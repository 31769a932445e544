"""Decoders that the paper compares with its ConvNeXt block (arXiv 2301.00808, section 3.1): UNet and Transformer.

The paper publishes their scores but not their settings; those here are our choice. As in the standard decoder, each
encoder map is filled with a mask token at masked cells, and only masked cells are predicted.
"""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..models.convnext_v2 import ConvNeXtV2Block
from ..models.execution import CELL, get_execution
from ..models.layers import LayerNorm
from ..ops.grid import Grid, map_to_sites, sites_to_map
from ..utils.errors import UserError
from .decoder import INIT_CFG, insert_mask_tokens, last_map

LEVELS = 4  # strides 32, 16, 8, 4, those of the encoder's stages


class Upsample(nn.Sequential):
    """LayerNorm, then a transposed convolution from one site to 2x2 with half the channels.

    It mirrors the encoder's downsampling.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(LayerNorm(channels), nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))

    def forward(self, sites: Tensor, grid: Grid) -> Tensor:
        """Turn sites (B, h * w, D) of ``grid`` into (B, 4 * h * w, D / 2)."""
        norm, conv = self
        return map_to_sites(conv(sites_to_map(norm(sites), grid)))


@MODELS.register_module()
class FCMAEUNetDecoder(BaseModule):
    """UNet decoder from stride 32 to stride 4: ConvNeXt blocks at each scale, with or without skip connections.

    The widths (D channels at stride 32, half as many at each finer scale), the number of blocks and the addition of
    skip connections are our choice.

    Args:
        in_channels (int | Sequence[int]): Channels of the encoder's last stage or, with skips, of all four stages.
        channels (int): Channels D at stride 32, a multiple of 8. Defaults to 512.
        depth (int): Number of blocks per scale. Defaults to 1.
        skips (bool): Whether to add the encoder's map of the same scale. The backbone must return all of them, with
            ``out_indices=(0, 1, 2, 3)``. Defaults to False.
        response_norm (dict, optional): Response norm of the blocks; None gives ConvNeXt V1 blocks. Defaults to GRN.
        cell (int): Side of a masking cell in pixels. Defaults to 32.

    Raises:
        ValueError: If ``channels`` is not a multiple of 8.
    """

    stride = CELL >> (LEVELS - 1)

    def __init__(
        self,
        in_channels: int | Sequence[int],
        channels: int = 512,
        depth: int = 1,
        skips: bool = False,
        response_norm: dict | None = dict(type='GRN'),
        cell: int = CELL,
    ) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.cell, self.stride = cell, cell >> (LEVELS - 1)
        if channels % 2 ** (LEVELS - 1) or channels <= 0:
            raise UserError(f'channels={channels} of FCMAEUNetDecoder: they halve three times; give a multiple of 8')
        self.skips = skips
        widths = [channels >> level for level in range(LEVELS)]
        sources = list(in_channels)[::-1] if skips else [in_channels]
        self.out_channels = widths[-1]
        self.projections = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(sources, widths))
        self.mask_tokens = nn.ParameterList(torch.zeros(width) for width in widths[: len(sources)])
        self.upsamples = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConvNeXtV2Block(width, response_norm=response_norm) for _ in range(depth)) for width in widths
        )

    def init_weights(self) -> None:
        """Initialise weights and mask tokens with standard deviation 0.02."""
        super().init_weights()
        for token in self.mask_tokens:
            nn.init.normal_(token, std=0.02)

    def forward(self, features: Tensor | Sequence[Tensor], visible_cells: Tensor) -> Tensor:
        """Decode encoder features to a map (B, D / 8, 8 * h, 8 * w).

        Args:
            features (Tensor | Sequence[Tensor]): The encoder's last map (B, Cin, h, w) or, with skips, its four maps.
            visible_cells (Tensor): Visible cells, long, (B, K).
        """
        maps = list(features)[::-1] if self.skips else [last_map(features)]
        grid = Grid(*maps[0].shape[-2:], stride=self.cell, cell=self.cell)
        sites = self._decode(0, self._read(0, maps[0], visible_cells), grid)  # (B, h * w, D)
        for level in range(1, LEVELS):
            sites = self.upsamples[level - 1](sites, grid)  # (B, 4^level * h * w, D / 2^level)
            grid = Grid(2 * grid.height, 2 * grid.width, stride=grid.stride // 2, cell=self.cell)
            if self.skips:
                sites = sites + self._read(level, maps[level], visible_cells)
            sites = self._decode(level, sites, grid)
        return sites_to_map(sites, grid)

    def _read(self, level: int, features: Tensor, visible_cells: Tensor) -> Tensor:
        """Project the encoder's map of a scale to sites of the decoder's width, with mask tokens at masked cells."""
        return insert_mask_tokens(
            self.projections[level](features), visible_cells, self.mask_tokens[level], self.cell >> level, self.cell
        )

    def _decode(self, level: int, sites: Tensor, grid: Grid) -> Tensor:
        """Run the blocks of a scale."""
        dense = get_execution('dense', masking=False)
        for block in self.blocks[level]:
            sites = block(sites, grid, dense)
        return sites


def sincos_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Return fixed 2D position embeddings (height * width, channels): sine and cosine of the row, then of the column.

    Wavelengths form a geometric sequence from 2 pi to 20000 pi sites, as in MAE (arXiv 2111.06377).

    Args:
        height (int): Number of rows.
        width (int): Number of columns.
        channels (int): Number of channels, a multiple of 4.
        like (Tensor): Tensor that gives dtype and device.
    """
    kind = dict(dtype=torch.float64, device=like.device)
    rates = 10000.0 ** (-torch.arange(channels // 4, **kind) / (channels // 4))
    rows = (torch.arange(height, **kind)[:, None, None] * rates).expand(-1, width, -1)  # (h, w, D / 4)
    columns = (torch.arange(width, **kind)[:, None] * rates).expand(height, -1, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1).flatten(0, 1).to(like.dtype)


@MODELS.register_module()
class FCMAETransformerDecoder(BaseModule):
    """Decoder of pre-norm Transformer blocks over all cells, with fixed sine-cosine positions for any image size.

    Depth, width and heads default to those of MAE's decoder (arXiv 2111.06377), which is our choice.

    Args:
        in_channels (int): Channels of the encoder's last stage.
        channels (int): Channels D, a multiple of 4 and of ``num_heads``. Defaults to 512.
        depth (int): Number of blocks. Defaults to 8.
        num_heads (int): Number of attention heads. Defaults to 16.
        cell (int): Side of a masking cell in pixels. Defaults to 32.

    Raises:
        ValueError: If ``channels`` is not a multiple of 4 and ``num_heads``.
    """

    skips = False
    stride = CELL

    def __init__(
        self, in_channels: int, channels: int = 512, depth: int = 8, num_heads: int = 16, cell: int = CELL
    ) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.stride = cell
        if channels % 4 or channels % num_heads:
            raise UserError(
                f'channels={channels} of FCMAETransformerDecoder: give a multiple of 4 and of num_heads={num_heads}'
            )
        self.out_channels = channels
        self.proj = nn.Conv2d(in_channels, channels, 1)
        self.mask_token = nn.Parameter(torch.zeros(channels))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels,
                num_heads,
                4 * channels,
                dropout=0.0,
                activation='gelu',
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = LayerNorm(channels)

    def init_weights(self) -> None:
        """Initialise weights and the mask token with standard deviation 0.02."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Tensor | Sequence[Tensor], visible_cells: Tensor) -> Tensor:
        """Decode the encoder's last map (B, Cin, h, w) to a map (B, D, h, w), given visible cells (B, K)."""
        features = last_map(features)
        grid = Grid(*features.shape[-2:], stride=self.stride, cell=self.stride)
        sites = self.proj(features)
        sites = insert_mask_tokens(sites, visible_cells, self.mask_token, self.stride, self.stride)  # (B, h * w, D)
        sites = sites + sincos_positions(grid.height, grid.width, sites.shape[-1], sites)
        for block in self.blocks:
            sites = block(sites)
        return sites_to_map(self.norm(sites), grid)
