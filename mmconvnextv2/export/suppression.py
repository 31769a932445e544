"""Non-maximum suppression as operators that ``torch.export`` traces and ONNX has, for any number of groups of boxes.

Both return scores instead of indices, so that shapes do not depend on values: a box that is removed gets ``REMOVED``.
In ONNX they are one ``NonMaxSuppression``, and one ``Loop`` with a pass per detection; see ``suppression_onnx.py``.

Legend: G groups (images, or images x classes), N boxes in each.
"""

from typing import Any

import torch
from torch import Tensor

REMOVED = -1.0  # score of what was removed, and of what fills a list up
LINEAR, GAUSSIAN = 1, 2  # as mmcv numbers the methods of soft-NMS; 0 is its 'naive'
METHODS = dict(naive=0, linear=LINEAR, gaussian=GAUSSIAN)


@torch.library.custom_op('mmconvnextv2::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Remove boxes whose overlap with a better box of their group exceeds a threshold.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, float32 (G, N, 4).
        scores (Tensor): Scores, float32 (G, N).
        iou_threshold (float): Largest intersection over union that is kept.
        score_threshold (float): Boxes of this score and below are removed first.

    Returns:
        Tensor: Scores (G, N), ``REMOVED`` for boxes that were removed.
    """
    from torchvision.ops import nms

    kept = torch.full_like(scores, REMOVED)
    for group in range(len(boxes)):
        valid = (scores[group] > score_threshold).nonzero().squeeze(1)
        best = valid[nms(boxes[group, valid], scores[group, valid], iou_threshold)]
        kept[group, best] = scores[group, best]
    return kept


@torch.library.custom_op('mmconvnextv2::suppress_softly', mutates_args=())
def suppress_softly(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    picks: int,
) -> Tensor:
    """Lower the scores of boxes that overlap better ones: Soft-NMS, https://arxiv.org/abs/1704.04503, algorithm 1.

    Only the best ``picks`` boxes of each group are needed: scores never rise, so they are the first to be picked.

    Args:
        boxes (Tensor): Corners, float32 (G, N, 4).
        scores (Tensor): Scores, float32 (G, N).
        iou_threshold (float): Smallest overlap at which methods 0 and 1 act.
        score_threshold (float): Boxes of this score and below are removed first.
        sigma (float): Sigma of method 2.
        min_score (float): Smallest score that is kept.
        method (int): Factor of a score: 0 for zero, 1 for one minus the overlap, 2 for exp(-overlap^2 / sigma).
        picks (int): Number of boxes to pick.

    Returns:
        Tensor: Scores of picked boxes, ``REMOVED`` for the others, (G, N).
    """
    from torchvision.ops import box_iou

    kept, left = torch.full_like(scores, REMOVED), torch.where(scores > score_threshold, scores, REMOVED)
    for _ in range(picks):
        value, best = left.max(1, keepdim=True)  # (G, 1)
        value = torch.where(value >= min_score, value, REMOVED)
        kept.scatter_(1, best, value.maximum(kept.gather(1, best)))  # after the last box, 0 is picked again
        picked = boxes.gather(1, best[..., None].expand(-1, -1, 4))  # (G, 1, 4)
        overlap = torch.stack([box_iou(one, others)[0] for one, others in zip(picked, boxes)]).nan_to_num()  # (G, N)
        decay = torch.where(overlap >= iou_threshold, 1 - overlap if method == LINEAR else 0.0, 1.0)
        if method == GAUSSIAN:
            decay = torch.exp(-overlap.square() / sigma)
        left = torch.where(left > 0, left * decay, REMOVED).scatter(1, best, REMOVED)
    return kept


@suppress.register_fake
def _suppress_shape(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    return torch.empty_like(scores)


@suppress_softly.register_fake
def _suppress_softly_shape(boxes: Tensor, scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores)
