"""FCMAE: fully convolutional masked autoencoder pretraining of ConvNeXt V2 (arXiv 2301.00808, section 3.1).

Against the official code: GRN statistics per image as in the paper, weights drawn once with std 0.02, the size of maps
from the image and never from occupied coordinates, any number of channels and non-square images.
"""

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..models.convnext_v2 import set_kernels
from ..models.execution import CELL, get_execution
from ..ops.cells import scatter, visible_sites
from ..ops.grid import Grid
from ..utils.errors import UserError
from .masking import masked_cells_of, stack_visible_cells


@MODELS.register_module()
class FCMAE(BaseSelfSupervisor):
    """The algorithm: mask, encode, decode, loss.

    Args:
        backbone (dict): ``ConvNeXtV2`` with ``out_indices=(3, ), out_norm=False``.
        neck (dict): ``FCMAEDecoder``, or ``FCMAEUNetDecoder`` or ``FCMAETransformerDecoder``; ``in_channels`` defaults
            to the backbone's last stage, or to all its stages for a decoder with skip connections.
        head (dict): ``FCMAEHead``; ``in_channels`` and ``stride`` default to the decoder's, ``image_channels`` to the
            backbone's.
        execution (str): How the encoder visits sites: ``'packed'``, ``'masked'`` or another key of
            ``mmconvnextv2.models.execution.EXECUTIONS`` that can mask. Defaults to ``'packed'``.
        data_preprocessor (dict, optional): Its type defaults to ``FCMAEDataPreprocessor``.
        init_cfg (dict, optional): Defaults to None.

    Raises:
        ValueError: If the execution is unknown or cannot mask, or the preprocessor is for another number of channels.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        execution: str = 'packed',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        get_execution(execution, masking=True)
        backbone = MODELS.build(backbone)
        neck = _build_decoder(neck, backbone)
        set_kernels(neck, getattr(backbone, 'kernels', None))
        head = MODELS.build(
            {'in_channels': neck.out_channels, 'stride': neck.stride, 'image_channels': backbone.in_channels, **head}
        )
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {'type': 'FCMAEDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        _check_normalisation(self.data_preprocessor, backbone.in_channels)
        self.execution = execution

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the loss of images (B, C, H, W) whose samples hold ``visible_cells``."""
        _check_channels(inputs, self.backbone.in_channels)
        visible_cells = stack_visible_cells(data_samples, inputs.device)  # (B, K)
        features = self.backbone(inputs, visible_cells, self.execution)  # the last: (B, Cin, H / 32, W / 32)
        decoded = self.neck(features, visible_cells)  # (B, D, H / s, W / s), s = 32 but for a UNet
        return dict(loss=self.head.loss(decoded, inputs, _masked_cells(visible_cells, inputs)))

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, visible_cells: Tensor) -> dict[str, Tensor]:
        """Return images to look at, in the inputs' normalised scale, each of shape (B, C, H, W).

        Predictions are mapped back with the true mean and deviation of each cell, as the target was.

        Args:
            inputs (Tensor): Normalised images, (B, C, H, W).
            visible_cells (Tensor): Long, (B, K).

        Returns:
            dict[str, Tensor]: ``original``, ``masked`` (hidden cells zero), ``reconstruction`` (the prediction at
            hidden cells, and zero at visible ones, for which nothing is predicted) and ``pasted`` (the prediction with
            the visible cells of the original).
        """
        _check_channels(inputs, self.backbone.in_channels)
        height, width = inputs.shape[-2:]
        masked_cells = _masked_cells(visible_cells, inputs)
        decoded = self.neck(self.backbone(inputs, visible_cells, self.execution), visible_cells)
        _, mean, deviation = self.head.target(inputs, masked_cells)
        pixels = self.head(decoded, masked_cells).to(mean.dtype) * deviation + mean  # (B, M, 32 * 32 * C)
        pixels = pixels.view(len(inputs), -1, inputs.shape[1])  # (B, M * 32 * 32, C)
        prediction = scatter(pixels, Grid(height, width, stride=1, visible_cells=masked_cells))
        shown = visible_sites(visible_cells, height, width, 1).view(-1, 1, height, width)
        return dict(
            original=inputs,
            masked=torch.where(shown, inputs, inputs.new_zeros(())),
            reconstruction=prediction,
            pasted=torch.where(shown, inputs, prediction.to(inputs.dtype)),
        )


def _build_decoder(config: dict, backbone: nn.Module) -> nn.Module:
    """Build the decoder for a backbone.

    Raises:
        ValueError: If it has skip connections and the backbone does not return all its stages.
    """
    skips = config.get('skips', False)
    if skips and backbone.out_indices != (0, 1, 2, 3):
        raise UserError(
            f'the decoder has skips=True but the backbone returns stages {backbone.out_indices}: set '
            'model.backbone.out_indices=(0, 1, 2, 3)'
        )
    return MODELS.build({'in_channels': backbone.channels if skips else backbone.channels[-1], **config})


def _check_normalisation(preprocessor: nn.Module, in_channels: int) -> None:
    """Raise ``ValueError`` for a mean of another length than the backbone's input."""
    mean = getattr(preprocessor, 'mean', None)
    if mean is not None and mean.numel() not in (1, in_channels):
        raise UserError(
            f'model.data_preprocessor has {mean.numel()} values in mean and std, but model.backbone has '
            f'in_channels={in_channels}: give one value, or one per channel'
        )


def _check_channels(images: Tensor, in_channels: int) -> None:
    """Raise ``ValueError`` for images (B, C, H, W) of another number of channels than the backbone's."""
    if images.ndim == 4 and images.shape[1] != in_channels:
        raise UserError(
            f'the images have {images.shape[1]} channels, but model.backbone has in_channels='
            f'{in_channels}: set it to what the images have, or load them with '
            f"dict(type='LoadMultiChannelImage', channels={in_channels}), or color_type='grayscale' of "
            'LoadImageFromFile for one channel'
        )


def _masked_cells(visible_cells: Tensor, images: Tensor) -> Tensor:
    """Return the hidden cells (B, M) of images (B, C, H, W)."""
    height, width = images.shape[-2:]
    return masked_cells_of(visible_cells, (height // CELL) * (width // CELL))
