"""Stems of ConvNeXt V2: the 4x4 patch convolution of the paper, and the two-step stem of MMEarth (arXiv 2405.02771).

MMEarth's FCMAE first convolves every pixel, then downsamples each channel by its patch size / 8. Its two codes pad
differently: sparse pretraining keeps every pixel where it is, dense fine-tuning does not pad the first convolution.
"""

import inspect
from typing import cast

from torch import Tensor, nn

from ..ops.grid import Grid
from ..ops.valid_sites import fill_invalid
from ..utils.errors import UserError
from .execution import Execution
from .layers import LayerNorm

PADDINGS = ('same', 'valid')


class Stem(nn.Sequential):
    """Convolution from 4x4 patches to sites, then LayerNorm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 4, stride=4), LayerNorm(channels))

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
        given = () if valid_pixels is None else (valid_pixels,)
        sites, grid = execution.enter(images, visible_cells, cast(nn.Conv2d, conv), *given)
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
        if not isinstance(stride, int) or stride < 1:
            raise UserError(f'stem.stride={stride!r}: expected a positive integer, the patch size / 8')
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

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self,
        images: Tensor,
        visible_cells: Tensor | None,
        execution: Execution,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """Return the sites (B, N, C) of whole images (B, Cin, H, W), and their grid.

        Where ``valid_pixels``, bool (B, H, W), is False, the images are zero.

        Raises:
            ValueError: If there are visible cells: their geometry is that of the patch stem. If there are valid pixels
                with ``padding='valid'``, which computes less at an image's border than where padding follows.
        """
        if visible_cells is not None:
            raise UserError("a backbone with stem=dict(type='ConvStem') takes whole images: pretrain with stem=None")
        conv, norm, activation, depthwise, last_norm = self
        if valid_pixels is not None and cast(nn.Conv2d, conv).padding == (0, 0):
            raise UserError(
                "stem.padding='valid' leaves out the pixels at an image's border, but not those before padding: with "
                "valid_sites=True, set stem.padding='same'"
            )
        pixels = activation(norm(conv(images).permute(0, 2, 3, 1)))  # (B, H, W, C)
        features, given = pixels.permute(0, 3, 1, 2), () if valid_pixels is None else (valid_pixels,)
        if valid_pixels is not None:
            features = fill_invalid(features, valid_pixels)  # the first convolution and norm left values there
        sites, grid = execution.enter(features, None, cast(nn.Conv2d, depthwise), *given)
        return last_norm(sites), grid


STEMS = {'ConvStem': ConvStem}


def build_stem(config: dict | None, in_channels: int, channels: int) -> nn.Module:
    """Build a stem from ``dict(type='ConvStem', ...)``; None gives the paper's 4x4 patch stem.

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
