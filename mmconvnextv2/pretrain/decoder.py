"""The light decoder of FCMAE and its loss (arXiv 2301.00808, section 3.1).

Upstream predicts every cell and masks the loss; here the prediction layer runs on masked cells only. The decoders of
the paper's ablation are in ``ablation_decoders.py``. A decoder is a module with ``out_channels``, ``stride`` (image
pixels between neighbouring sites of its map, 32 or a divisor) and ``forward(features, visible_cells)``.
Suffixes: B images, M masked cells, D decoder channels, C image channels, p sites along a cell's side, s the stride.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..models.convnext_v2 import ConvNeXtV2Block
from ..models.execution import CELL, get_execution
from ..ops.cells import gather, visible_sites
from ..ops.grid import Grid, map_to_sites, sites_to_map
from ..ops.reductions import fill_masked, statistics_dtype
from ..ops.valid_sites import valid_sites
from ..utils.moved import moved_names

INIT_CFG = dict(type='TruncNormal', layer=['Conv2d', 'ConvTranspose2d', 'Linear'], std=0.02)


def insert_mask_tokens(
    features: Tensor, visible_cells: Tensor, mask_token: Tensor, stride: int = CELL, cell: int = CELL
) -> Tensor:
    """Turn a map (B, D, h, w) into sites (B, h * w, D) with ``mask_token`` (D, ) at masked cells.

    Masked features are replaced, not multiplied by zero, so not even NaN passes.
    """
    shown = visible_sites(visible_cells, *features.shape[-2:], stride, cell)  # (B, h * w, 1), True = visible
    sites = map_to_sites(features)
    return torch.where(shown, sites, mask_token.to(sites.dtype))


def pixels_of_cells(predicted: Tensor, cells: Tensor, patch: int, stride: int) -> Tensor:
    """Arrange what the sites of cells (B, M) predict as pixels in raster order.

    Args:
        predicted (Tensor): Pixels by site, channels last, (B, M * p * p, s * s * C).
        cells (Tensor): Cells, (B, M).
        patch (int): Sites p along a cell's side.
        stride (int): Pixels s along a site's side.

    Returns:
        Tensor: (B, M, p * s * p * s, C).
    """
    pixels = predicted.reshape(*cells.shape, patch, patch, stride, stride, -1)
    return pixels.transpose(3, 4).flatten(2, 5)  # (B, M, p, s, p, s, C)


def last_map(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the last of the encoder's maps; a single map is returned unchanged."""
    return features if isinstance(features, Tensor) else features[-1]


@MODELS.register_module()
class FCMAEDecoder(BaseModule):
    """Standard decoder: a projection, mask tokens at masked cells, and ConvNeXt V2 blocks on the whole map.

    Args:
        in_channels (int): Channels of the encoder's last stage.
        channels (int): Decoder channels D. Defaults to 512.
        depth (int): Number of blocks. Defaults to 1.
        response_norm (dict, optional): Response norm of the blocks; None gives ConvNeXt V1 blocks. Defaults to GRN.
        cell (int): Side of a masking cell in pixels. Defaults to 32.
    """

    skips = False
    stride = CELL

    def __init__(
        self,
        in_channels: int,
        channels: int = 512,
        depth: int = 1,
        response_norm: dict | None = dict(type='GRN'),
        cell: int = CELL,
    ) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.channels = self.out_channels = channels
        self.stride = cell
        self.proj = nn.Conv2d(in_channels, channels, 1)
        self.mask_token = nn.Parameter(torch.zeros(channels))
        self.blocks = nn.ModuleList(ConvNeXtV2Block(channels, response_norm=response_norm) for _ in range(depth))

    def init_weights(self) -> None:
        """Initialise weights and the mask token with standard deviation 0.02."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, features: Tensor | Sequence[Tensor], visible_cells: Tensor, valid_pixels: Tensor | None = None
    ) -> Tensor:
        """Decode the encoder's last map (B, Cin, h, w) to a map (B, D, h, w), given visible cells (B, K).

        Cells without a valid pixel, of ``valid_pixels`` bool (B, H, W), are read as zero and do not count in GRN.
        """
        features = last_map(features)
        valid = None if valid_pixels is None else valid_sites(valid_pixels, self.stride)
        grid = Grid(*features.shape[-2:], stride=self.stride, site_mask=valid, cell=self.stride)
        sites = self.proj(features)
        sites = insert_mask_tokens(sites, visible_cells, self.mask_token, self.stride, self.stride)  # (B, h * w, D)
        dense = get_execution('dense', masking=False)  # mask tokens are features like any other
        for block in self.blocks:
            sites = block(sites, grid, dense)
        return sites_to_map(sites, grid)


def normalise(values: Tensor, counted: Tensor | None, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise values by their mean and unbiased variance over some dimensions; also return mean and deviation.

    Args:
        values (Tensor): Values, zero where they do not count.
        counted (Tensor, optional): Values that count, bool, of the same shape; others give 0. None means all.
        dims (tuple[int, ...]): Dimensions.
    """
    if counted is None:
        variance, mean = torch.var_mean(values, dims, keepdim=True)
        deviation = (variance + 1e-6).sqrt()
        return (values - mean) / deviation, mean, deviation
    count = counted.sum(dims, keepdim=True)
    mean = values.sum(dims, keepdim=True) / count.clamp(min=1)
    centred = torch.where(counted, values - mean, 0)
    deviation = (centred.square().sum(dims, keepdim=True) / (count - 1).clamp(min=1) + 1e-6).sqrt()
    return centred / deviation, mean, deviation


@MODELS.register_module()
class FCMAEHead(BaseModule):
    """Prediction of the normalised pixels of masked cells.

    Args:
        in_channels (int): Decoder channels D. Defaults to 512.
        image_channels (int): Image channels C. Defaults to 3.
        norm_pix (bool): Whether to normalise targets by the mean and unbiased variance of their cell. Defaults to True.
        stride (int): Stride s of the decoded map; each site predicts s x s pixels. Defaults to 32.
        cell (int): Side of a masking cell in pixels, a multiple of the stride. Defaults to 32.
    """

    def __init__(
        self,
        in_channels: int = 512,
        image_channels: int = 3,
        norm_pix: bool = True,
        stride: int = CELL,
        cell: int = CELL,
    ) -> None:
        super().__init__(init_cfg=INIT_CFG)
        self.norm_pix = norm_pix
        self.stride = stride
        self.cell = cell
        self.pred = nn.Linear(in_channels, stride * stride * image_channels)

    def forward(self, decoded: Tensor, masked_cells: Tensor) -> Tensor:
        """Predict the pixels of masked cells (B, M) from a decoded map (B, D, H / s, W / s).

        Returns (B, M, cell * cell * C), pixels in raster order, channels last.
        """
        patch = self.cell // self.stride
        pixels = self.pred(gather(decoded, masked_cells, patch))  # (B, M * p * p, s * s * C)
        return pixels_of_cells(pixels, masked_cells, patch, self.stride).flatten(2)

    def target(
        self, images: Tensor, masked_cells: Tensor, valid_pixels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the target (B, M, cell * cell * C) of masked cells, and its mean and deviation (B, M, 1).

        The target is normalised by mean and deviation; with ``norm_pix=False`` they are 0 and 1. With ``valid_pixels``,
        bool (B, H, W), both are over valid pixels, and the target is 0 at the others.
        """
        cells = gather(images, masked_cells, self.cell).reshape(*masked_cells.shape, -1)
        cells = cells.to(statistics_dtype(cells.dtype))  # statistics of a cell's values need float32
        valid = None if valid_pixels is None else self._valid_values(images, masked_cells, valid_pixels)
        cells = fill_masked(cells, valid)
        if not self.norm_pix:
            return cells, torch.zeros_like(cells[..., :1]), torch.ones_like(cells[..., :1])
        return normalise(cells, valid, (-1,))

    def _valid_values(self, images: Tensor, cells: Tensor, valid_pixels: Tensor) -> Tensor:
        """Return whether each value (B, M, cell * cell * C) of cells (B, M) is of a valid pixel."""
        valid = gather(valid_pixels.unsqueeze(1), cells, self.cell)  # (B, M * cell * cell, 1)
        return valid.expand(-1, -1, images.shape[1]).reshape(*cells.shape, -1)

    def loss(self, decoded: Tensor, images: Tensor, masked_cells: Tensor, valid_pixels: Tensor | None = None) -> Tensor:
        """Return the mean squared error over the pixels of masked cells, a scalar.

        With ``valid_pixels``, bool (B, H, W), the mean is over valid pixels of the batch, 0 if there are none.
        """
        target = self.target(images, masked_cells, valid_pixels)[0]
        predicted = self(decoded, masked_cells).to(target.dtype)
        if valid_pixels is None:
            return F.mse_loss(predicted, target)
        valid = self._valid_values(images, masked_cells, valid_pixels)
        return fill_masked(predicted - target, valid).square().sum() / valid.sum().clamp(min=1)


__getattr__ = moved_names(__name__)
