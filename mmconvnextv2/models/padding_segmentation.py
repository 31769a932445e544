"""MMSegmentation's data preprocessor, FPN and pyramid pooling for a backbone with ``valid_sites=True``."""

from collections.abc import Sequence
from math import nan
from typing import Any

import torch
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import UPerHead
from mmseg.models.decode_heads.psp_head import PPM
from mmseg.models.necks import FPN
from mmseg.registry import MODELS
from torch import Tensor

from .padding_maps import ValidCells, ValidTopDown, resize_valid, valid_of


@MODELS.register_module()
class NaNPaddedSegDataPreProcessor(SegDataPreProcessor):
    """MMSegmentation's ``SegDataPreProcessor`` that pads with NaN.

    Args:
        args, kwargs: Those of ``SegDataPreProcessor``; ``pad_val`` is not used.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pad_val = nan


class ValidPPM(PPM):
    """MMSegmentation's pyramid pooling over valid sites; parameters have the same names.

    Cells divide the smallest rectangle that holds the valid sites of an image, and average the valid ones. A site whose
    channels are all zero is invalid: a backbone with ``valid_sites=True`` leaves exactly these.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pool a map (B, C, H, W) to each scale; returns maps of its size, one per scale."""
        cells = ValidCells(valid_of(x))
        return [
            cells.spread(conv(cells.average(x, scale)), self.align_corners)
            for scale, (_, conv) in zip(self.pool_scales, self)
        ]


@MODELS.register_module()
class ValidUPerHead(UPerHead):
    """MMSegmentation's ``UPerHead`` that reads valid sites only; see :class:`ValidPPM`.

    Maps are zero at invalid sites before each 3 x 3 convolution, and resized from valid sites. With
    ``align_corners=True`` a resized map depends on the size of the padded one, as anywhere.

    Args:
        args, kwargs: Those of ``UPerHead``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given: PPM = self.psp_modules  # type: ignore[has-type]  # set by the base class
        self.psp_modules = ValidPPM(
            given.pool_scales,
            given.in_channels,
            given.channels,
            conv_cfg=given.conv_cfg,
            norm_cfg=given.norm_cfg,
            act_cfg=given.act_cfg,
            align_corners=given.align_corners,
        )

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        inputs = self._transform_inputs(inputs)
        valid = [valid_of(each) for each in inputs]
        tops = [conv(each) * kept for conv, each, kept in zip(self.lateral_convs, inputs, valid)]
        tops.append(self.psp_forward(inputs) * valid[-1])
        for finer in range(len(tops) - 2, -1, -1):
            coarse = resize_valid(tops[finer + 1], valid[finer + 1], valid[finer], self.align_corners)
            tops[finer] = tops[finer] + coarse
        maps = [conv(top) * kept for conv, top, kept in zip(self.fpn_convs, tops, valid)] + tops[-1:]
        finest = [resize_valid(one, kept, valid[0], self.align_corners) for one, kept in zip(maps[1:], valid[1:])]
        return self.fpn_bottleneck(torch.cat([maps[0], *finest], 1))


@MODELS.register_module()
class ValidFPN(ValidTopDown, FPN):
    """MMSegmentation's ``FPN`` with maps that stay zero at invalid sites; arguments and weights are the same."""
