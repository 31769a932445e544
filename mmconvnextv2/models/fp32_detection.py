"""Where boxes are made and pooled in fp32 under mixed precision.

Box coordinates beyond 256 lose whole pixels in bfloat16. Compiled mmcv 2.1.0 has neither RoIAlign nor NMS in it on the
CPU, and misreads channels-last memory; torchvision's operators have both, and copy nothing here.
Differs from MMDetection's ``RPNHead`` and ``SingleRoIExtractor`` in the dtype alone.
"""

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class FP32SingleRoIExtractor(SingleRoIExtractor):
    """MMDetection's ``SingleRoIExtractor``, computed in fp32 whatever the autocast dtype is."""

    def forward(self, feats: tuple[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pool features of shape (B, C, H, W) a level for RoIs of shape (K, 5); returns (K, C, S, S) in fp32."""
        with torch.autocast(feats[0].device.type, enabled=False):
            maps = tuple(feat.float().contiguous() for feat in feats)
            return super().forward(maps, rois.float(), roi_scale_factor)


@MODELS.register_module()
class FP32RPNHead(RPNHead):
    """MMDetection's ``RPNHead`` whose scores and deltas leave in fp32, so that losses, boxes and NMS are fp32."""

    def forward(self, x: tuple[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict, a level, objectness of shape (B, A, H, W) and box deltas of shape (B, 4A, H, W), both fp32."""
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]
