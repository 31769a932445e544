"""Exportable graphs from pixels to maps or logits, built from operations that every runtime supports.

A graph includes the data preprocessor's mean and standard deviation. Its model is a copy with two changes. Blocks run
layer by layer, because one fused operation would hide GRN. Pooling to a fixed number of cells becomes a matrix
product, because for pooling the ONNX exporter of torch 2.11 writes a graph that is wrong at other sizes than the traced
one. With half precision the layers compute in float16; inputs, outputs, normalisation, the sums of norms, boxes, scores
and masks stay float32.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from ..checkpoint.cross_check import relative_difference
from ..models.convnext_v2 import ConvNeXtV2, set_kernels
from ..utils.errors import UserError

SMALLEST = 64  # pixels per side, twice the stride of the last stage
PIXELS = ('float32', 'uint8', 'normalized')


class CellAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as products with two weight matrices, for maps of any size; sums are in float32.

    Args:
        output_size (int): Number of cells n per side.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Average a map of shape (B, C, H, W) to cells of shape (B, C, n, n)."""
        rows, columns = (self._shares(size, features_BCHW.device) for size in features_BCHW.shape[2:])
        return (rows @ features_BCHW.float() @ columns.T).to(features_BCHW.dtype)

    def _shares(self, size: int, device: torch.device) -> Tensor:
        """Return the weight of each site in each cell, (n, size); cells overlap unless n divides ``size``."""
        cell, site = torch.arange(self.output_size, device=device)[:, None], torch.arange(size, device=device)
        first, end = cell * size // self.output_size, ((cell + 1) * size + self.output_size - 1) // self.output_size
        return ((site >= first) & (site < end)).float() / (end - first)


class WholeUpsample(nn.Module):
    """MMSegmentation's ``Upsample`` by a whole factor, whose size it rounds by way of a float that no graph can hold.

    Args:
        upsample (nn.Module): The layer that it replaces.
    """

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = upsample.scale_factor, upsample.mode, upsample.align_corners

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Resize a map (B, C, H, W) to (B, C, factor * H, factor * W)."""
        size = [int(factor) * side for factor, side in zip(self._factors(), features_BCHW.shape[2:])]
        return F.interpolate(features_BCHW, size, mode=self.mode, align_corners=self.align_corners)

    def _factors(self) -> tuple[float, float]:
        return self.factor if isinstance(self.factor, tuple) else (self.factor, self.factor)


def _is_whole_upsample(module: nn.Module) -> bool:
    factor = getattr(module, 'scale_factor', None)
    factors = factor if isinstance(factor, tuple) else (factor,)
    is_ours = type(module).__name__ == 'Upsample' and not isinstance(module, nn.Upsample)
    return is_ours and all(each and float(each).is_integer() for each in factors)


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model for export: in evaluation mode, with blocks layer by layer, pooling as :class:`CellAverage`."""
    model = revert_sync_batchnorm(deepcopy(model)).eval().requires_grad_(False)
    set_kernels(model, 'layers')
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(module, name, CellAverage(child.output_size))
            elif _is_whole_upsample(child):
                setattr(module, name, WholeUpsample(child))
    return model


class Float32Norm(nn.Module):
    """A norm whose sums float16 cannot hold, computed in float32.

    Args:
        norm (nn.Module): The norm that it replaces.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features in the dtype of which they are."""
        return self.norm(features.float()).to(features.dtype)


def norm_in_float32(model: nn.Module) -> None:
    """Compute GroupNorm, InstanceNorm and LayerNorm in float32, in place; GRN does by itself."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)):
                setattr(module, name, Float32Norm(child))


class PixelGraph(nn.Module):
    """A model preceded by the normalisation of its pixels.

    Args:
        model (nn.Module): Model, which is copied; see :func:`plain_copy`.
        mean (Sequence[float]): Mean per channel, in pixel values.
        std (Sequence[float]): Standard deviation per channel, in pixel values.
        half (bool): Compute in float16, but norms, boxes, scores and masks in float32. Defaults to False.
        pixels (str): Input, one of ``PIXELS``: pixels of 0 to 255 in float32 or uint8, or ``'normalized'`` for float32
            that the caller has normalised. Defaults to ``'float32'``.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        half: bool = False,
        pixels: str = 'float32',
    ) -> None:
        super().__init__()
        self.dtype = torch.float16 if half else torch.float32
        self.pixels = pixels
        self.model = plain_copy(model).to(self.dtype)
        if half:
            norm_in_float32(self.model)
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()  # exporters go back to the mode of the outermost module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return float32 or integer outputs in the order of :attr:`output_names`, for images (B, C, H, W)."""
        if self.pixels != 'normalized':
            images = (images.float() - self.mean) / self.std
        outputs = self.run(images.to(self.dtype))
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model on normalised images."""
        raise NotImplementedError

    @property
    def output_names(self) -> tuple[str, ...]:
        """One name per output."""
        raise NotImplementedError

    @property
    def backbone(self) -> ConvNeXtV2:
        """The model's backbone."""
        return self.model.backbone

    any_size = True  # whether batch, height and width can be free
    traced = False  # whether only torch's older tracer can record it

    @property
    def smallest(self) -> int:
        """Smallest height and width in pixels; torch.export specialises on maps with a single row."""
        return SMALLEST

    def draw_images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return random images to compare outputs on, of a batch, height and width, in the form that it reads."""
        batch, height, width = shape
        generator, size = torch.Generator().manual_seed(0), (height, width)
        noise = torch.rand(batch, self.backbone.in_channels, height, width, generator=generator)
        blobs = torch.rand(batch, self.backbone.in_channels, 6, 6, generator=generator)
        pixels = (noise + 3 * F.interpolate(blobs, size, mode='bicubic').clamp(0, 1)) * (255 / 4)
        if self.pixels == 'normalized':
            return (pixels - self.mean) / self.std
        return pixels.to(torch.uint8) if self.pixels == 'uint8' else pixels

    def difference(self, expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str:
        """Describe how outputs differ from those that are expected.

        Raises:
            ValueError: If they differ by more than ``limit``, as a fraction of the largest value, or are NaN.
        """
        differences = [relative_difference(one, other) for one, other in zip(expected, found, strict=True)]
        worst = max(differences, key=lambda one: (one != one, one))  # NaN counts as the largest
        if not worst <= limit:
            raise UserError(f"differ from PyTorch's by {worst:.1e} of the largest value, allowed are {limit:.0e}")
        return f'differs from PyTorch by {worst:.1e} of the largest value'
