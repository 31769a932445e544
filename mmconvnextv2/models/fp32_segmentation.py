"""MMSegmentation's Mask2Former with matching and losses in fp32 under mixed precision; needs mmdet.

See :mod:`mmconvnextv2.models.fp32_transformers`, whose pixel decoder it uses. Only the dtype differs from
MMSegmentation's ``Mask2FormerHead``.
"""

from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.registry import MODELS

from ..ops.autocast import in_fp32
from . import fp32_transformers  # noqa: F401  registers mmdet.FP32MSDeformAttnPixelDecoder


@MODELS.register_module()
class FP32Mask2FormerHead(Mask2FormerHead):
    """MMSegmentation's ``Mask2FormerHead`` with fp32 matching and losses."""

    _loss_by_feat_single = in_fp32(Mask2FormerHead._loss_by_feat_single)
