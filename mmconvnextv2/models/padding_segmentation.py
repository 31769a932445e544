"""MMSegmentation's data preprocessor and pyramid pooling for a backbone with ``valid_sites=True``."""

from math import nan
from typing import Any

from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import UPerHead
from mmseg.models.decode_heads.psp_head import PPM
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor


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
    """MMSegmentation's pyramid pooling whose averages are over valid sites; parameters have the same names.

    A site whose channels are all zero is invalid: a backbone with ``valid_sites=True`` leaves exactly these.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pool a map (B, C, H, W) to each scale; returns maps of its size, one per scale."""
        valid = (x != 0).any(1, keepdim=True).to(x.dtype)  # (B, 1, H, W)
        outputs = []
        for pool, conv in self:
            share = pool(valid)  # of each cell; zero only where the sum of values is zero, too
            pooled = pool(x) / share.masked_fill(share == 0, 1)
            outputs.append(resize(conv(pooled), size=x.shape[2:], mode='bilinear', align_corners=self.align_corners))
        return outputs


@MODELS.register_module()
class ValidUPerHead(UPerHead):
    """MMSegmentation's ``UPerHead`` whose pyramid pools valid sites; see :class:`ValidPPM`."""

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
