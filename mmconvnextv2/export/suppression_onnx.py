"""The operators of :mod:`mmconvnextv2.export.suppression` in ONNX; needs onnxscript.

The name of a variable in a ``script`` function is that of a tensor in the graph.
"""

from collections.abc import Callable

import torch
from onnxscript import FLOAT, INT64, script
from onnxscript import opset18 as op

from .suppression import REMOVED


def _suppress(boxes: FLOAT, scores: FLOAT, iou_threshold: float, score_threshold: float) -> FLOAT:
    thresholds = [op.Constant(value_floats=[value]) for value in (iou_threshold, score_threshold)]
    count = op.Shape(scores, start=1, end=2)
    chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), count, *thresholds)  # (M, 3): group, 0, box
    places = op.Gather(chosen, [0, 2], axis=1)
    nothing = op.Expand(op.Constant(value_floats=[REMOVED]), op.Shape(scores))
    return op.ScatterND(nothing, places, op.GatherND(scores, places))


@script()
def _pick_softly(
    boxes: FLOAT,
    scores: FLOAT,
    iou_threshold: FLOAT,
    score_threshold: FLOAT,
    sigma: FLOAT,
    min_score: FLOAT,
    method: INT64,
    picks: INT64,
    removed: FLOAT,
) -> FLOAT:
    zero = op.Constant(value_float=0.0)
    one = op.Constant(value_float=1.0)
    start = op.Constant(value_ints=[0])
    middle = op.Constant(value_ints=[2])
    end = op.Constant(value_ints=[4])
    left = op.Where(op.Greater(scores, score_threshold), scores, removed)
    kept = op.Expand(removed, op.Shape(scores))
    for _ in range(picks):
        best = op.ArgMax(left, axis=1, keepdims=1)  # (G, 1)
        value = op.GatherElements(left, best, axis=1)
        value = op.Where(op.GreaterOrEqual(value, min_score), value, removed)
        before = op.GatherElements(kept, best, axis=1)  # after the last box, 0 is picked again
        kept = op.ScatterElements(kept, best, op.Max(value, before), axis=1)
        index = op.Expand(op.Unsqueeze(best, middle), op.Constant(value_ints=[1, 1, 4]))
        picked = op.GatherElements(boxes, index, axis=1)  # (G, 1, 4)
        low = op.Slice(boxes, start, middle, middle)  # (G, N, 2); onnxruntime warns if sliced before the loop
        high = op.Slice(boxes, middle, end, middle)
        areas = op.ReduceProd(op.Sub(high, low), middle, keepdims=0)  # (G, N)
        picked_low = op.Slice(picked, start, middle, middle)
        picked_high = op.Slice(picked, middle, end, middle)
        sides = op.Max(op.Sub(op.Min(picked_high, high), op.Max(picked_low, low)), zero)
        inter = op.ReduceProd(sides, middle, keepdims=0)  # (G, N)
        area = op.ReduceProd(op.Sub(picked_high, picked_low), middle, keepdims=0)  # (G, 1)
        union = op.Sub(op.Add(area, areas), inter)
        overlap = op.Where(op.Greater(union, zero), op.Div(inter, union), zero)
        linear = op.Where(op.Equal(method, op.Constant(value_int=1)), op.Sub(one, overlap), zero)
        hard = op.Where(op.GreaterOrEqual(overlap, iou_threshold), linear, one)
        smooth = op.Exp(op.Neg(op.Div(op.Mul(overlap, overlap), sigma)))
        decay = op.Where(op.Equal(method, op.Constant(value_int=2)), smooth, hard)
        lowered = op.Where(op.Greater(left, zero), op.Mul(left, decay), removed)
        left = op.ScatterElements(lowered, best, op.Expand(removed, op.Shape(best)), axis=1)
    return kept


def _suppress_softly(
    boxes: FLOAT,
    scores: FLOAT,
    iou_threshold: float,
    score_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    picks: int,
) -> FLOAT:
    numbers = [op.Constant(value_float=value) for value in (iou_threshold, score_threshold, sigma, min_score)]
    counts = [op.Constant(value_int=value) for value in (method, picks)]
    return _pick_softly(boxes, scores, *numbers, *counts, op.Constant(value_float=REMOVED))


TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.mmconvnextv2.suppress.default: _suppress,
    torch.ops.mmconvnextv2.suppress_softly.default: _suppress_softly,
}
