"""FCMAE: fully convolutional masked autoencoder pretraining of ConvNeXt V2 (arXiv 2301.00808, section 3.1).

Differences from the official code: GRN statistics are per image, as in the paper. Weights are initialised once, with
std 0.02. The size of maps follows from the image, not from occupied coordinates. Images may have any number of channels
and need not be square.
"""

from inspect import signature
from typing import Any

import torch
from mmengine.model import initialize
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checkpoint.continued import PRETRAINED
from ..models.convnext_v2 import set_kernels
from ..models.execution import CELL, get_execution
from ..ops.cells import scatter, visible_sites
from ..ops.grid import Grid
from ..ops.valid_sites import fill_invalid, read_valid_pixels, valid_sites
from ..utils.errors import UserError
from .masking import masked_cells_of, stack_visible_cells


@MODELS.register_module()
class FCMAE(BaseSelfSupervisor):
    """FCMAE: mask, encode, decode, loss.

    Args:
        backbone (dict): Config of ``ConvNeXtV2`` with ``out_indices=(3, ), out_norm=False``.
        neck (dict): Config of the decoder: ``FCMAEDecoder``, ``FCMAEUNetDecoder`` or ``FCMAETransformerDecoder``.
            ``in_channels`` defaults to the channels of the backbone's last stage, or of all its stages for a decoder
            with skip connections.
        head (dict): Config of ``FCMAEHead``. ``in_channels`` and ``stride`` default to the decoder's,
            ``image_channels`` to the backbone's input channels.
        execution (str): Execution of the encoder: ``'packed'``, ``'masked'`` or another key of
            ``mmconvnextv2.models.execution.EXECUTIONS`` that can mask. Defaults to ``'packed'``.
        response_norm (dict | str, optional): Response norm of encoder and decoder together, None for none of them.
            Defaults to ``'own'``: each has that of its own config.
        data_preprocessor (dict, optional): Config of the data preprocessor, whose type defaults to
            ``FCMAEDataPreprocessor``. Defaults to None.
        init_cfg (dict, optional): Config of mmengine initializers, ``dict(type='FCMAEPretrained', checkpoint=...)`` for
            continued pretraining. Defaults to None.

    Raises:
        ValueError: If the execution is unknown or cannot mask, the preprocessor has another number of channels, or the
            backbone has ``valid_sites=True`` and the decoder does not take valid pixels.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        execution: str = 'packed',
        response_norm: dict | str | None = 'own',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        get_execution(execution, masking=True)
        if response_norm != 'own':
            backbone = {**backbone, 'response_norm': response_norm}
            neck = {**neck, **_accepted(neck, response_norm=response_norm)}  # a transformer has none
        backbone = MODELS.build(backbone)
        neck = _build_decoder(neck, backbone)
        if getattr(backbone, 'valid_sites', False) and 'valid_pixels' not in signature(neck.forward).parameters:
            raise UserError(
                f'model.backbone.valid_sites=True, but {type(neck).__name__} counts all cells: choose FCMAEDecoder'
            )
        set_kernels(neck, getattr(backbone, 'kernels', None))
        widths = dict(in_channels=neck.out_channels, stride=neck.stride, image_channels=backbone.in_channels)
        more = _accepted(head, cell=cell_of(backbone), encoder_channels=backbone.channels[-1])
        head = MODELS.build({**widths, **more, **head})
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = {'type': 'FCMAEDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        _check_normalisation(self.data_preprocessor, backbone.in_channels)
        self.execution = execution

    def init_weights(self) -> None:
        """Initialise weights once; what loads weights comes last, so that nothing overwrites them."""
        given = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        loading = [] if self._is_init else [one for one in given if one['type'] in PRETRAINED]
        self.init_cfg = [one for one in given if one['type'] not in PRETRAINED]
        super().init_weights()
        initialize(self, loading)
        self.init_cfg = given

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Return the loss of images (B, C, H, W) whose data samples hold ``visible_cells``."""
        _check_channels(inputs, self.backbone.in_channels)
        cells = stack_visible_cells(data_samples, inputs.device, cell_of(self.backbone))
        return dict(loss=self.masked_loss(inputs, cells))

    def masked_loss(self, inputs: Tensor, visible_cells: Tensor) -> Tensor:
        """Return the loss of images (B, C, H, W) with visible cells (B, K).

        With ``valid_sites=True`` of the backbone, NaN marks invalid pixels, which are neither read nor predicted.
        """
        # One argument more: (valid_pixels, ) with valid_sites, otherwise ()
        valid = self._valid_pixels(inputs)
        features = self.backbone(inputs, visible_cells, self.execution, *valid)  # last: (B, Cin, H / cell, W / cell)
        decoded = self.neck(features, visible_cells, *valid)  # (B, D, H / s, W / s), s = cell except for a UNet
        return self.head.loss(decoded, inputs, self._masked_cells(visible_cells, inputs), *valid)

    def _valid_pixels(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (read_valid_pixels(inputs),) if getattr(self.backbone, 'valid_sites', False) else ()

    def _masked_cells(self, visible_cells: Tensor, images: Tensor) -> Tensor:
        """Return the masked cells (B, M) of images (B, C, H, W)."""
        cell, (height, width) = cell_of(self.backbone), images.shape[-2:]
        return masked_cells_of(visible_cells, (height // cell) * (width // cell))

    def compile_loss(self, **options) -> None:
        """Compile encoder, decoder and loss into one graph, with arguments of ``torch.compile``."""
        self.masked_loss = torch.compile(self.masked_loss, **options)  # type: ignore[method-assign]

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, visible_cells: Tensor) -> dict[str, Tensor]:
        """Return reconstructions for visual inspection, on the scale of the normalised inputs.

        With ``norm_pix`` the model predicts pixels relative to the mean and deviation of their cell, which it is not
        asked for. ``reconstruction`` and ``pasted`` take both from the original, so that even an untrained model shows
        the right colours; ``unaided`` takes them from visible cells nearby and shows what the model alone knows.

        Args:
            inputs (Tensor): Normalised images of shape (B, C, H, W).
            visible_cells (Tensor): Visible cells, long, (B, K).

        Returns:
            dict[str, Tensor]: Images of shape (B, C, H, W): ``original``, ``masked`` (zero in masked cells),
            ``reconstruction`` (prediction in masked cells, zero in visible cells, which are not predicted),
            ``pasted`` (prediction with the visible cells of the original) and ``unaided`` (the same, with mean and
            deviation of each masked cell interpolated from visible cells).
        """
        _check_channels(inputs, self.backbone.in_channels)
        height, width = inputs.shape[-2:]
        masked_cells, cell = self._masked_cells(visible_cells, inputs), cell_of(self.backbone)
        valid = self._valid_pixels(inputs)
        decoded = self.neck(self.backbone(inputs, visible_cells, self.execution, *valid), visible_cells, *valid)
        _, mean, deviation = self.head.target(inputs, masked_cells, *valid)
        predicted = self.head(decoded, masked_cells).to(mean.dtype)  # (B, M, cell * cell * C)
        grid = Grid(height, width, stride=1, visible_cells=masked_cells, cell=cell)

        def to_images(pixels: Tensor) -> Tensor:
            return scatter(pixels.view(len(inputs), -1, inputs.shape[1]), grid)

        prediction = to_images(predicted * deviation + mean)
        _, mean, deviation = self.head.target(inputs, visible_cells, *valid)  # (B, K, 1)
        near = nearness(masked_cells, visible_cells, width // cell).to(mean.dtype)  # (B, M, K)
        if valid:  # cells that only fill the list have no mean and deviation
            counted = valid_sites(valid[0], cell).squeeze(2).gather(1, visible_cells).unsqueeze(1)  # (B, 1, K)
            near = near * counted / (near * counted).sum(2, keepdim=True).clamp(min=1e-30)
            inputs = fill_invalid(inputs, valid[0])
        unaided = to_images(predicted * (near @ deviation) + near @ mean)
        shown = visible_sites(visible_cells, height, width, 1, cell).view(-1, 1, height, width)
        return dict(
            original=inputs,
            masked=torch.where(shown, inputs, inputs.new_zeros(())),
            reconstruction=prediction,
            pasted=torch.where(shown, inputs, prediction.to(inputs.dtype)),
            unaided=torch.where(shown, inputs, unaided.to(inputs.dtype)),
        )


def nearness(cells: Tensor, others: Tensor, width: int) -> Tensor:
    """Return weights (B, M, K), each row summing to 1, of cells (B, K) for cells (B, M): a Gaussian of their distance.

    Args:
        cells (Tensor): Indices of cells in raster order, long, (B, M).
        others (Tensor): Indices of the cells to interpolate from, long, (B, K).
        width (int): Cells per row of the image.
    """
    rows = (cells // width).unsqueeze(2) - (others // width).unsqueeze(1)
    columns = (cells % width).unsqueeze(2) - (others % width).unsqueeze(1)
    return (-(rows**2 + columns**2).double() / 2).softmax(2)  # a deviation of one cell


def cell_of(backbone: nn.Module) -> int:
    """Return the side of a backbone's masking cells in pixels; 32 for one that does not say."""
    return getattr(backbone, 'cell', CELL)


def _accepted(config: dict, **arguments: Any) -> dict[str, Any]:
    """Return the arguments that the class of a config names in its signature."""
    parameters = signature(MODELS.get(config['type'])).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def _build_decoder(config: dict, backbone: nn.Module) -> nn.Module:
    """Build the decoder for a backbone.

    Raises:
        ValueError: If the decoder has skip connections and the backbone does not return all its stages.
    """
    skips = config.get('skips', False)
    if skips and backbone.out_indices != (0, 1, 2, 3):
        raise UserError(
            f'the decoder has skips=True but the backbone returns stages {backbone.out_indices}: set '
            'model.backbone.out_indices=(0, 1, 2, 3)'
        )
    in_channels = backbone.channels if skips else backbone.channels[-1]
    return MODELS.build({'in_channels': in_channels, **_accepted(config, cell=cell_of(backbone)), **config})


def _check_normalisation(preprocessor: nn.Module, in_channels: int) -> None:
    """Raise ``ValueError`` if the length of the mean does not fit the backbone's input channels."""
    mean = getattr(preprocessor, 'mean', None)
    if mean is not None and mean.numel() not in (1, in_channels):
        raise UserError(
            f'model.data_preprocessor has {mean.numel()} values in mean and std, but model.backbone has '
            f'in_channels={in_channels}: give one value, or one per channel'
        )


def _check_channels(images: Tensor, in_channels: int) -> None:
    """Raise ``ValueError`` if images (B, C, H, W) do not have the backbone's number of channels."""
    if images.ndim == 4 and images.shape[1] != in_channels:
        raise UserError(
            f'the images have {images.shape[1]} channels, but model.backbone has in_channels='
            f'{in_channels}: set in_channels to the number of channels of the images, or load them with '
            f"dict(type='LoadMultiChannelImage', channels={in_channels}), or color_type='grayscale' of "
            'LoadImageFromFile for one channel'
        )
