"""RoI extractors whose pooling runs in fp32 under mixed precision.

RoIAlign of mmcv 2.1.0 has no bfloat16 on the CPU, and box coordinates beyond 256 lose whole pixels in it.
Differs from MMDetection's ``SingleRoIExtractor`` in the dtype alone.
"""
from typing import Optional, Tuple

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class FP32SingleRoIExtractor(SingleRoIExtractor):
    """MMDetection's ``SingleRoIExtractor``, computed in fp32 whatever the autocast dtype is."""

    def forward(self, feats: Tuple[Tensor], rois: Tensor, roi_scale_factor: Optional[float] = None) -> Tensor:
        """Pool features of shape (B, C, H, W) a level for RoIs of shape (K, 5); returns (K, C, S, S) in fp32."""
        with torch.autocast(feats[0].device.type, enabled=False):
            return super().forward(tuple(feat.float() for feat in feats), rois.float(), roi_scale_factor)
