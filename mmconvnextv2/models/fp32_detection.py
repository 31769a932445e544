"""Detection layers that predict and pool boxes in fp32 under mixed precision.

In bfloat16, box coordinates above 256 are off by whole pixels. Compiled mmcv 2.1.0 has neither RoIAlign nor NMS for
bfloat16 on the CPU, and misreads channels-last memory. torchvision's operators (:mod:`mmconvnextv2.mmcv_operators`)
support both, and make no further copy of the fp32 maps. Only the dtype differs from MMDetection's ``RPNHead`` and
``SingleRoIExtractor``.
"""

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor


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
