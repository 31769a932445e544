"""DINO, DDQ and Mask2Former with fp32 where mixed precision loses positions or lacks a kernel.

Deformable attention samples maps at positions that it predicts, as fractions of the map. Rounded to bfloat16 they are
off by up to 2**-9, a third of a cell if the map is 167 cells wide (1333 pixels at stride 8), and mmcv's CUDA kernel
rejects the dtype. Proposals, losses and the matching before them are fp32 as well. Everything else follows autocast.
Mask2Former's pixel decoder is fp32 throughout, as in the official code (facebookresearch/Mask2Former,
``msdeformattn.py``). Only the dtype differs from MMDetection's classes.
"""

from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DDQDETRHead, DINOHead, Mask2FormerHead
from mmdet.models.detectors import DDQDETR, DINO
from mmdet.models.layers import DDQTransformerDecoder, MSDeformAttnPixelDecoder
from mmdet.registry import MODELS
from torch import nn

from ..ops.autocast import in_fp32


class FP32MultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention``, computed in fp32 regardless of the autocast dtype."""

    forward = in_fp32(MultiScaleDeformableAttention.forward)


def use_fp32_attention(transformer: nn.Module) -> None:
    """Replace the deformable attention of MMDetection's transformer layers, which do not build it from a registry.

    Args:
        transformer (nn.Module): Module with ``DeformableDetrTransformerEncoderLayer`` or ``...DecoderLayer`` inside,
            modified in place before its weights are initialised.
    """
    for layer in list(transformer.modules()):
        for name, child in list(layer.named_children()):
            if type(child) is MultiScaleDeformableAttention:
                setattr(layer, name, FP32MultiScaleDeformableAttention(**getattr(layer, f'{name}_cfg')))


@MODELS.register_module()
class FP32DINO(DINO):
    """MMDetection's ``DINO`` with fp32 deformable attention and proposals; to be used with :class:`FP32DINOHead`."""

    def _init_layers(self) -> None:
        super()._init_layers()
        use_fp32_attention(self)

    pre_decoder = in_fp32(DINO.pre_decoder)


@MODELS.register_module()
class FP32DINOHead(DINOHead):
    """MMDetection's ``DINOHead`` whose predictions, matching and losses are fp32."""

    loss = in_fp32(DINOHead.loss)


class FP32DDQTransformerDecoder(DDQTransformerDecoder):
    """MMDetection's ``DDQTransformerDecoder`` that selects distinct queries by fp32 scores and boxes."""

    select_distinct_queries = in_fp32(DDQTransformerDecoder.select_distinct_queries)


@MODELS.register_module()
class FP32DDQDETR(DDQDETR):
    """MMDetection's ``DDQDETR`` with fp32 deformable attention, proposals and selection of distinct queries.

    To be used with :class:`FP32DDQDETRHead`.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder = FP32DDQTransformerDecoder(**self.decoder_cfg)
        use_fp32_attention(self)

    pre_decoder = in_fp32(DDQDETR.pre_decoder)


@MODELS.register_module()
class FP32DDQDETRHead(DDQDETRHead):
    """MMDetection's ``DDQDETRHead`` whose predictions, matching and losses are fp32."""

    loss = in_fp32(DDQDETRHead.loss)


@MODELS.register_module()
class FP32MSDeformAttnPixelDecoder(MSDeformAttnPixelDecoder):
    """MMDetection's ``MSDeformAttnPixelDecoder``, computed in fp32 regardless of the autocast dtype."""

    forward = in_fp32(MSDeformAttnPixelDecoder.forward)


@MODELS.register_module()
class FP32Mask2FormerHead(Mask2FormerHead):
    """MMDetection's ``Mask2FormerHead`` with fp32 matching and losses.

    To be used with :class:`FP32MSDeformAttnPixelDecoder`.
    """

    _loss_by_feat_single = in_fp32(Mask2FormerHead._loss_by_feat_single)
