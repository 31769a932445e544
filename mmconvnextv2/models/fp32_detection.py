"""Detection layers that predict and pool boxes in fp32 under mixed precision.

In bfloat16, box coordinates above 256 are off by whole pixels. Compiled mmcv 2.1.0 has neither RoIAlign nor NMS for
bfloat16 on the CPU, and misreads channels-last memory. torchvision's operators (:mod:`mmconvnextv2.mmcv_operators`)
support both, and make no further copy of the fp32 maps. Only the dtype differs from MMDetection's ``RPNHead``,
``RetinaHead``, ``ATSSHead``, ``RTMDetSepBNHead`` and ``SingleRoIExtractor``.
"""

import torch
from mmdet.models.dense_heads import ATSSHead, RetinaHead, RPNHead, RTMDetSepBNHead
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


class FP32Outputs:
    """Mixin of dense heads: outputs in fp32, so that losses, anchors, boxes and NMS are computed in fp32."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple:
        """Predict, for each output of the head, maps (B, channels, H, W) in fp32, one per level."""
        return to_fp32(super().forward(x))  # type: ignore[misc]  # of the head that this is mixed into


@MODELS.register_module()
class FP32RPNHead(FP32Outputs, RPNHead):
    """MMDetection's ``RPNHead`` with fp32 objectness (B, A, H, W) and box deltas (B, 4A, H, W) per level."""


@MODELS.register_module()
class FP32RetinaHead(FP32Outputs, RetinaHead):
    """MMDetection's ``RetinaHead`` with fp32 scores (B, A * classes, H, W) and box deltas (B, 4A, H, W) per level."""


@MODELS.register_module()
class FP32ATSSHead(FP32Outputs, ATSSHead):
    """MMDetection's ``ATSSHead`` with fp32 scores, box deltas and centre-ness (B, A, H, W) per level."""


class FP32Conv2d(nn.Conv2d):
    """Convolution that is computed in fp32 regardless of the autocast dtype."""

    forward = in_fp32(nn.Conv2d.forward)


@MODELS.register_module()
class FP32RTMDetSepBNHead(FP32Outputs, RTMDetSepBNHead):
    """MMDetection's ``RTMDetSepBNHead`` with fp32 scores (B, classes, H, W) and distances to four sides per level.

    The last convolution of the box branch is in fp32 as well: the head exponentiates its output, which turns a rounding
    error of a logit into a relative error of a distance in pixels.
    """

    rtm_reg: nn.ModuleList

    def _init_layers(self) -> None:
        super()._init_layers()
        size = self.pred_kernel_size
        self.rtm_reg = nn.ModuleList(
            FP32Conv2d(conv.in_channels, conv.out_channels, size, padding=size // 2)  # type: ignore[arg-type]
            for conv in self.rtm_reg
        )
