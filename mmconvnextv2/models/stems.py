"""Stems of ConvNeXt V2: the patch convolution of the paper, and the two-step stem of MMEarth (arXiv 2405.02771).

The three downsampling layers behind a stem of stride s lead to one site per 8 * s pixels, which is the side of a
masking cell: 32 behind the paper's 4x4 patches, 16 and 8 for small images behind a stem of stride 2 and 1.

MMEarth's FCMAE first convolves every pixel, then downsamples each channel by its patch size / 8. Its two codes pad
differently: sparse pretraining keeps every pixel where it is, dense fine-tuning does not pad the first convolution.
"""

import inspect
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dispatch import has_hooks
from ..ops.grid import Grid
from ..ops.valid_sites import fill_invalid
from ..utils.errors import UserError
from .execution import Execution
from .layers import LayerNorm

PADDINGS = ('same', 'valid')


class Stem(nn.Sequential):
    """Convolution from patches to sites, then LayerNorm.

    Args:
        in_channels (int): Channels of the images.
        channels (int): Channels of the first stage.
        stride (int): Side of a patch in pixels. Maps have strides s, 2s, 4s, 8s, and masking cells 8s pixels a side.
            Defaults to 4.

    Raises:
        ValueError: If the stride is not a positive integer.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 4) -> None:
        _check_stride(stride)
        super().__init__(nn.Conv2d(in_channels, channels, stride, stride=stride), LayerNorm(channels))
        self.stride = stride

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        execution: Execution,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """Return the sites (B, N, C) of images (B, Cin, H, W), and their grid.

        Where ``valid_pixels``, bool (B, H, W), is False, the images are zero.
        """
        conv, norm = self
        sites, grid = _enter(execution, images, visible_cells, conv, self.stride, valid_pixels)
        return norm(sites), grid


class ConvStem(nn.Sequential):
    """3x3 convolution, LayerNorm and GELU on pixels, then a depthwise convolution of stride ``stride`` and LayerNorm.

    Args:
        in_channels (int): Channels of the images.
        channels (int): Channels of the first stage.
        stride (int): Side and stride of the depthwise convolution, MMEarth's patch size / 8: 1 or 2 in its released
            files. Maps have strides s, 2s, 4s, 8s. Defaults to 2.
        padding (str): ``'same'`` pads the first convolution only, as MMEarth's sparse pretraining, so that maps have
            H / s rows. ``'valid'`` pads the second one only, by s // 2, as MMEarth's fine-tuning code. Defaults to
            ``'same'``.

    Raises:
        ValueError: If stride or padding is not one of these.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 2, padding: str = 'same') -> None:
        _check_stride(stride)
        if padding not in PADDINGS:
            raise UserError(f'stem.padding={padding!r} is unknown: choose from {list(PADDINGS)}')
        first, second = (1, 0) if padding == 'same' else (0, stride // 2)
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=first),
            LayerNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, stride, stride=stride, padding=second, groups=channels),
            LayerNorm(channels),
        )
        self.stride, self.padding = stride, padding

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        execution: Execution,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """Return the sites (B, N, C) of images (B, Cin, H, W), and their grid.

        Where ``valid_pixels``, bool (B, H, W), is False, the images are zero.

        Raises:
            ValueError: If the padding is that of MMEarth's fine-tuning and there are visible cells, or valid pixels:
                it computes less at an image's border than where padding follows.
        """
        conv, norm, activation, depthwise, last_norm = self
        if valid_pixels is not None and self.padding != 'same':
            raise UserError(
                f'stem.padding={self.padding!r} leaves out the pixels at the border of an image, but not those before '
                "padding: with valid_sites=True, set stem.padding='same'"
            )
        if visible_cells is not None:
            if self.padding != 'same':
                raise UserError(
                    f'stem.padding={self.padding!r} moves pixels across cells: pretrain with '
                    "stem=dict(type='ConvStem', padding='same')"
                )
            # Masked pixels are zero for the first convolution; the second one stays inside of a cell
            run = self._run_padded
            sites, grid = _enter(execution, images, visible_cells, run, self.stride, valid_pixels, border=1)
        else:
            features = activation(norm(conv(images).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)  # (B, C, H, W)
            if valid_pixels is not None:
                features = fill_invalid(features, valid_pixels)  # the first convolution and norm left values there
            sites, grid = _enter(execution, features, None, depthwise, self.stride, valid_pixels)
        return last_norm(sites), grid

    def _run_padded(self, images: Tensor) -> Tensor:
        """Run both convolutions on maps (n, Cin, H + 2, W + 2), which have a border already: (n, C, H / s, W / s)."""
        conv, norm, activation, depthwise, _ = self
        if type(conv) is nn.Conv2d and not has_hooks(conv):
            pixels = F.conv2d(images, conv.weight, conv.bias)
        else:
            pixels = conv(images)[..., 1:-1, 1:-1]
        pixels = activation(norm(pixels.permute(0, 2, 3, 1)))  # (n, H, W, C)
        return depthwise(pixels.permute(0, 3, 1, 2))


def _enter(
    execution: Execution,
    images: Tensor,
    visible_cells: Tensor | None,
    run: Callable[[Tensor], Tensor],
    stride: int,
    valid_pixels: Tensor | None,
    **options: int,
) -> tuple[Tensor, Grid]:
    """Enter an execution; one of 0.1 has three arguments, so the others are given only where they matter."""
    given: dict = {**options} if stride == 4 else {**options, 'stride': stride}
    if valid_pixels is not None:
        given['valid_pixels'] = valid_pixels
    return execution.enter(images, visible_cells, run, **given)


def _check_stride(stride: int) -> None:
    if not isinstance(stride, int) or stride < 1:
        raise UserError(f'stem.stride={stride!r}: expected a positive integer, the patch size / 8')


STEMS = {'ConvStem': ConvStem, 'PatchStem': Stem}


def build_stem(config: dict | None, in_channels: int, channels: int) -> nn.Module:
    """Build a stem from ``dict(type='ConvStem', ...)`` or ``'PatchStem'``; None gives the paper's 4x4 patches.

    Raises:
        ValueError: If ``type`` is missing or unknown, or does not take one of the arguments.
    """
    if config is None:
        return Stem(in_channels, channels)
    arguments = dict(config)
    kind = arguments.pop('type', None)
    if kind not in STEMS:
        raise UserError(f'stem=dict(type={kind!r}) is unknown: choose from {sorted(STEMS)}, or None for 4x4 patches')
    known = list(inspect.signature(STEMS[kind]).parameters)[2:]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UserError(f'stem=dict(type={kind!r}, ...) does not know {", ".join(unknown)}: choose from {known}')
    return STEMS[kind](in_channels, channels, **arguments)
