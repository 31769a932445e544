"""Detection layers that predict and pool boxes in fp32 under mixed precision.

In bfloat16, box coordinates above 256 are off by whole pixels. Compiled mmcv 2.1.0 has neither RoIAlign nor NMS for
bfloat16 on the CPU, and misreads channels-last memory. torchvision's operators (:mod:`mmconvnextv2.mmcv_operators`)
support both, and make no further copy of the fp32 maps. Only the dtype differs from MMDetection's ``RPNHead``,
``SingleRoIExtractor`` and ``RTMDetSepBNHead``.
"""

import torch
from mmdet.models.dense_heads import RPNHead, RTMDetSepBNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..ops.autocast import in_fp32, to_fp32


@MODELS.register_module()
class FP32SingleRoIExtractor(SingleRoIExtractor):
    """MMDetection's ``SingleRoIExtractor``, computed in fp32 regardless of the autocast dtype."""

    def forward(self, feats: tuple[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pool features, (B, C, H, W) per level, for RoIs of shape (K, 5); returns (K, C, S, S) in fp32."""
        with torch.autocast(feats[0].device.type, enabled=False):
            maps = tuple(feat.float().contiguous() for feat in feats)
            return super().forward(maps, rois.float(), roi_scale_factor)


@MODELS.register_module()
class FP32RPNHead(RPNHead):
    """MMDetection's ``RPNHead`` with fp32 scores and deltas, so losses, boxes and NMS are computed in fp32."""

    def forward(self, x: tuple[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict objectness (B, A, H, W) and box deltas (B, 4A, H, W) per level, both in fp32."""
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class FP32Conv2d(nn.Conv2d):
    """Convolution that is computed in fp32 regardless of the autocast dtype."""

    forward = in_fp32(nn.Conv2d.forward)


@MODELS.register_module()
class FP32RTMDetSepBNHead(RTMDetSepBNHead):
    """MMDetection's ``RTMDetSepBNHead`` with fp32 scores and distances, so losses and boxes are computed in fp32.

    The last convolution of the box branch is in fp32 as well: the head exponentiates its output, which turns a rounding
    error of a logit into a relative error of a distance in pixels.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        size = self.pred_kernel_size
        self.rtm_reg = nn.ModuleList(
            FP32Conv2d(conv.in_channels, conv.out_channels, size, padding=size // 2) for conv in self.rtm_reg
        )

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Predict scores (B, classes, H, W) and distances to four sides (B, 4, H, W) per level, both in fp32."""
        return to_fp32(super().forward(feats))
