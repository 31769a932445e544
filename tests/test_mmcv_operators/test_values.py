"""mmcv's operators by torchvision equal slow references that are written from their definitions, gradients included."""

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmconvnextv2

mmcv_ops = pytest.importorskip('mmcv.ops', reason='needs mmcv: make env')

SPEC = spec_from_file_location('operators', Path(mmconvnextv2.__file__).parent / 'mmcv_operators' / 'extension.py')
operators = module_from_spec(SPEC)
SPEC.loader.exec_module(operators)


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """Serve mmcv.ops by these operators, be they compiled in this environment or not."""
    import sys

    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', operators)
    torch.manual_seed(0)


def random_boxes(count, seed, size=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


# --- Suppression ---


def iou(one, other, offset):
    """Intersection over union in float32, 0 / 0 is NaN."""
    f = np.float32
    width = max(f(0), min(one[2], other[2]) - max(one[0], other[0]) + f(offset))
    height = max(f(0), min(one[3], other[3]) - max(one[1], other[1]) + f(offset))
    areas = [(box[2] - box[0] + f(offset)) * (box[3] - box[1] + f(offset)) for box in (one, other)]
    with np.errstate(all='ignore'):
        return width * height / (areas[0] + areas[1] - width * height)


def slow_soft_nms(boxes, scores, threshold, sigma, least, method, offset):
    """Soft-NMS on a list, one box after another, in mmcv's order."""
    f = np.float32
    left = [[box, score, index] for index, (box, score) in enumerate(zip(boxes.numpy(), scores.numpy()))]
    picked = []
    while left:
        best = 0
        for place in range(1, len(left)):
            if left[best][1] < left[place][1]:
                best = place
        left[0], left[best] = left[best], left[0]
        box, score, index = left.pop(0)
        picked.append((index, score))
        place = 0
        while place < len(left):
            overlap = iou(box, left[place][0], offset)
            if method == 2:
                decay = f(np.exp(np.float64(-(overlap * overlap) / f(sigma)))) if overlap > 0 else f(1)
            else:
                decay = (f(0) if method == 0 else f(1) - overlap) if overlap >= f(threshold) else f(1)
            left[place][1] = left[place][1] * decay
            if left[place][1] < f(least):
                last = left.pop()
                if place < len(left):
                    left[place] = last
            else:
                place += 1
    return picked


@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize(
    'case',
    ['random', 'tied', 'classes', 'points', 'nan', 'negative', 'least 0', 'threshold 0', 'all below', 'one', 'large'],
)
def test_soft_nms_is_the_slow_one(method, offset, case):
    """Boxes, order and scores of Soft-NMS are bitwise those of a loop over a list, with ties and degenerate boxes."""
    count = {'one': 1, 'large': 300}.get(case, 70)
    boxes, scores = random_boxes(count, 1), torch.rand(count, generator=torch.Generator().manual_seed(2))
    threshold, least = (0.0 if case == 'threshold 0' else 0.3), (0.0 if case == 'least 0' else 0.05)
    if case == 'tied':
        boxes, scores = (boxes / 10).round() * 10, (scores * 5).round() / 5
    if case == 'classes':
        boxes = boxes + torch.arange(count)[:, None] % 7 * 200.0
    if case == 'points':
        boxes[:20, 2:] = boxes[:20, :2]
        boxes[10:20] = boxes[:10]
        boxes[20:25, [0, 2]] = boxes[20:25, [2, 0]]
    if case == 'nan':
        scores[[0, 7, 30]] = math.nan
    if case == 'negative':
        scores = scores - 0.5
    if case == 'all below':
        scores = scores / 1000
    dets = boxes.new_empty(count, 5)
    found = operators.softnms(
        boxes, scores, dets, iou_threshold=threshold, sigma=0.5, min_score=least, method=method, offset=offset
    )
    expected = slow_soft_nms(boxes, scores, threshold, 0.5, least, method, offset)
    assert found.tolist() == [index for index, _ in expected]
    np.testing.assert_array_equal(dets[: len(found), 4].numpy(), [score for _, score in expected])
    torch.testing.assert_close(dets[: len(found), :4], boxes[found], rtol=0, atol=0)


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_keeps_what_a_loop_keeps(threshold, offset):
    """NMS is a loop from the best box down, whose overlaps are compared in float32."""
    boxes, scores = random_boxes(150, 3).round(), torch.rand(150)
    left, kept = scores.sort(descending=True)[1].tolist(), []
    while left:
        kept.append(left.pop(0))
        left = [j for j in left if not iou(boxes[kept[-1]].numpy(), boxes[j].numpy(), offset) > np.float32(threshold)]
    assert mmcv_ops.nms(boxes, scores, threshold, offset)[1].tolist() == kept


def test_nms_at_the_threshold_and_in_ties():
    """By hand: an overlap equal to the threshold, in float32, suppresses nothing; equal scores go in the order of the
    boxes; matching takes equality as a match."""
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0], [20.0, 0.0, 30.0, 10.0], [20.0, 0.0, 30.0, 10.0]]
    )
    scores = torch.tensor([0.5, 0.4, 0.9, 0.9])
    assert mmcv_ops.nms(boxes, scores, 0.3)[1].tolist() == [2, 0, 1]
    assert mmcv_ops.nms(boxes, scores, 0.29)[1].tolist() == [2, 0]
    matched = mmcv_ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3)
    assert [group.tolist() for group in matched] == [[2, 3], [0, 1]]


def test_nms_of_odd_input():
    """No boxes give none, half-precision and mixed dtypes give what float32 gives, a NaN goes first and suppresses."""
    none, index = mmcv_ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert none.shape == (0, 5) and index.shape == (0,) and index.dtype == torch.long
    boxes, scores = random_boxes(80, 4).half().float(), torch.rand(80)
    expected = mmcv_ops.nms(boxes, scores, 0.4)[1]
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(mmcv_ops.nms(boxes.to(dtype), scores, 0.4)[1], expected)
    equal = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(3, 1)
    assert mmcv_ops.nms(equal, torch.tensor([0.9, math.nan, 0.8]), 0.5)[1].tolist() == [1]


def test_batched_nms_in_parts():
    """Above ``split_thr`` each class is suppressed by itself, with the same result."""
    boxes, scores, classes = random_boxes(200, 5), torch.rand(200), torch.randint(4, (200,))
    whole = mmcv_ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5))
    parts = mmcv_ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5, split_thr=10))
    assert len(whole[1]) < 200 and torch.equal(whole[1], parts[1]) and torch.equal(whole[0], parts[0])


# --- RoIAlign ---


def slow_roi_align(maps, rois, size, scale, ratio, aligned):
    """Average over points of each bin, each interpolated between four pixels."""
    height, width = maps.shape[2:]
    result = maps.new_zeros(len(rois), maps.shape[1], *size)
    shift = 0.5 if aligned else 0.0
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        rows, columns = (ratio, ratio) if ratio > 0 else (math.ceil(h / size[0]), math.ceil(w / size[1]))
        for p in range(size[0]):
            for q in range(size[1]):
                for i in range(rows):
                    for j in range(columns):
                        y, x = (y1 + (p + (i + 0.5) / rows) * h / size[0], x1 + (q + (j + 0.5) / columns) * w / size[1])
                        if not (-1 <= y <= height and -1 <= x <= width):
                            continue
                        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                        top, left = int(y), int(x)
                        for r, a in ((top, top + 1 - y), (min(top + 1, height - 1), y - top)):
                            for c, b in ((left, left + 1 - x), (min(left + 1, width - 1), x - left)):
                                result[k, :, p, q] = result[k, :, p, q] + maps[int(image), :, r, c] * (a * b)
                result[k, :, p, q] = result[k, :, p, q] / max(rows * columns, 1)
    return result


ROIS = torch.tensor(
    [
        [0, 1.0, 2.0, 20.0, 30.0],
        [1, -9.0, -4.0, 7.0, 9.0],
        [1, 30.0, 20.0, 70.0, 60.0],
        [0, 5.0, 5.0, 5.0, 5.0],
        [0, 90.0, 90.0, 99.0, 99.0],
    ],
    dtype=torch.float64,
)  # inside, across borders, a point, outside


@pytest.mark.parametrize('ways', ['kernel', 'without the private gradient', 'deterministic'])
@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(monkeypatch, ways, ratio, aligned):
    """Values and gradients are those of a loop over points in float64, also without torchvision's private function,
    and by the matrix products that serve deterministic algorithms on CUDA."""
    if ways == 'without the private gradient':
        monkeypatch.setattr(operators, '_has_private', lambda name: False)
    if ways == 'deterministic':
        monkeypatch.setattr(operators, '_must_be_deterministic', lambda x: True)
        monkeypatch.setattr(operators, 'ROIS', 2)
    maps = torch.randn(2, 3, 9, 11, dtype=torch.float64, requires_grad=True)
    pooled = mmcv_ops.roi_align(maps, ROIS, (3, 2), 0.25, ratio, 'avg', aligned)
    expected = slow_roi_align(maps, ROIS, (3, 2), 0.25, ratio, aligned)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn_like(pooled)
    own, reference = (torch.autograd.grad((one * weights).sum(), maps)[0] for one in (pooled, expected))
    assert reference.abs().sum() > 0
    torch.testing.assert_close(own, reference)


def test_roi_align_of_half_precision_and_strides():
    """bfloat16 and float16 are pooled in float32, RoIs may have another dtype, channels-last memory is read as it is,
    and no RoI gives an empty result."""
    maps = torch.randn(2, 8, 9, 11)
    expected = mmcv_ops.roi_align(maps, ROIS.float(), (3, 2), 0.25, 2, 'avg', True)
    last = maps.to(memory_format=torch.channels_last)
    assert torch.equal(mmcv_ops.roi_align(last, ROIS.float(), (3, 2), 0.25, 2, 'avg', True), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = maps.to(dtype)
        exact = mmcv_ops.roi_align(half.float(), ROIS.float(), (3, 2), 0.25, 2, 'avg', True)
        for rois in (ROIS.float(), ROIS.float().to(dtype).float()):
            found = mmcv_ops.roi_align(half, rois, (3, 2), 0.25, 2, 'avg', True)
            assert found.dtype == dtype
        assert torch.equal(mmcv_ops.roi_align(half, ROIS.float(), (3, 2), 0.25, 2, 'avg', True), exact.to(dtype))
    assert mmcv_ops.roi_align(maps, torch.empty(0, 5), (3, 2), 0.25, 2, 'avg', True).shape == (0, 8, 3, 2)
    with pytest.raises(RuntimeError, match="pool_mode='max'.*compiled mmcv"):
        mmcv_ops.roi_align(maps, ROIS.float(), (3, 2), 0.25, 2, 'max', True)


# --- Deformable convolution and attention ---


def slow_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups):
    """Sample each tap by grid_sample in pixels, then multiply."""
    batch, channels, height, width = x.shape
    kh, kw = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    columns = []
    for group, maps in enumerate(x.chunk(offset_groups, dim=1)):
        for tap in range(kh * kw):
            at = group * kh * kw + tap
            y = offset[:, 2 * at] + (torch.arange(out_h) * stride - padding + tap // kw * dilation)[:, None]
            z = offset[:, 2 * at + 1] + torch.arange(out_w) * stride - padding + tap % kw * dilation
            grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
            value = F.grid_sample(maps, grid, align_corners=False)  # (B, C / offset groups, H', W')
            columns.append(value if mask is None else value * mask[:, at : at + 1])
    taps = torch.stack(columns, 1).unflatten(1, (offset_groups, kh * kw)).transpose(2, 3).flatten(1, 2)
    parts = zip(taps.chunk(groups, dim=1), weight.chunk(groups))  # (B, C / groups, T, H', W'), (O / groups, ...)
    result = torch.cat([torch.einsum('bcthw,oct->bohw', tap, one.flatten(2)) for tap, one in parts], dim=1)
    return result if bias is None else result + bias[:, None, None]


@pytest.mark.parametrize('ways', ['kernel', 'without the private gradient', 'deterministic'])
@pytest.mark.parametrize('masked', [True, False])
def test_deform_conv(monkeypatch, ways, masked):
    """Values and all gradients of both deformable convolutions are those of sampling tap by tap in float64."""
    if ways == 'without the private gradient':
        monkeypatch.setattr(operators, '_has_private', lambda name: False)
    if ways == 'deterministic':
        monkeypatch.setattr(operators, '_must_be_deterministic', lambda x: True)
    how = dict(stride=2, padding=1, dilation=2, groups=2, offset_groups=2)
    shapes = dict(x=(2, 4, 9, 8), offset=(2, 2 * 2 * 9, 4, 3), mask=(2, 2 * 9, 4, 3), weight=(6, 2, 3, 3), bias=(6,))
    given = {name: torch.randn(shape, dtype=torch.float64).requires_grad_() for name, shape in shapes.items()}
    if masked:
        found = mmcv_ops.modulated_deform_conv2d(*given.values(), 2, 1, 2, 2, 2)
    else:
        given = {name: given[name] for name in ('x', 'offset', 'weight')}
        found = mmcv_ops.deform_conv2d(*given.values(), 2, 1, 2, 2, 2)
    expected = slow_deform_conv(**{'mask': None, 'bias': None, **given}, **how)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    own = torch.autograd.grad((found * weights).sum(), given.values())
    for one, other in zip(own, torch.autograd.grad((expected * weights).sum(), given.values())):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_deform_conv_of_a_frozen_input():
    """The gradient of the weight alone is that of the weight among all gradients; half precision runs in float32."""
    x, offset, weight = torch.randn(1, 2, 6, 6), torch.randn(1, 18, 4, 4), torch.randn(3, 2, 3, 3, requires_grad=True)
    (alone,) = torch.autograd.grad(mmcv_ops.deform_conv2d(x, offset, weight).square().sum(), weight)
    x.requires_grad_()
    _, among = torch.autograd.grad(mmcv_ops.deform_conv2d(x, offset, weight).square().sum(), (x, weight))
    torch.testing.assert_close(alone, among)
    half = mmcv_ops.deform_conv2d(x.bfloat16(), offset.bfloat16(), weight)
    torch.testing.assert_close(half.float(), mmcv_ops.deform_conv2d(x, offset, weight), rtol=0.05, atol=0.3)
    with pytest.raises((RuntimeError, ValueError)):
        mmcv_ops.deform_conv2d(x, offset[:, :4], weight)


@pytest.mark.parametrize('deterministic', [False, True])
def test_deformable_attention(monkeypatch, deterministic):
    """Values and gradients are those of reading each point between its four pixels, and gradcheck holds."""
    monkeypatch.setattr(operators, '_must_be_deterministic', lambda x: deterministic)
    function = mmcv_ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    shapes, start = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    value = torch.randn(2, 26, 2, 3, dtype=torch.float64, requires_grad=True)
    places = (torch.rand(2, 4, 2, 2, 3, 2, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    factors = torch.randn(2, 4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    found = function(value, shapes, start, places, factors, 64)
    expected = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    for b, q, h, level, point in np.ndindex(2, 4, 2, 2, 3):
        height, width = shapes[level].tolist()
        x, y = (places[b, q, h, level, point].detach() * torch.tensor([width, height]) - 0.5).tolist()
        for r in (math.floor(y), math.floor(y) + 1):
            for c in (math.floor(x), math.floor(x) + 1):
                if 0 <= r < height and 0 <= c < width:
                    share = (1 - abs(y - r)) * (1 - abs(x - c)) * factors[b, q, h, level, point].detach()
                    expected[b, q, h] += share * value[b, start[level] + r * width + c, h].detach()
    torch.testing.assert_close(found, expected.flatten(2))
    assert torch.autograd.gradcheck(
        lambda *inputs: function(inputs[0], shapes, start, *inputs[1:], 64), (value, places, factors)
    )


# --- Focal losses ---


@pytest.mark.parametrize('weighted', [False, True])
def test_focal_losses(weighted):
    """Losses are the formulas of the paper, derivatives those of autograd; a target past the classes is background."""
    x = torch.randn(6, 4, dtype=torch.float64) * 3
    target, weight = torch.tensor([0, 3, 4, 1, 4, 2]), (torch.rand(4, dtype=torch.float64) if weighted else None)
    factor = torch.cat([weight, torch.ones(1)])[target] if weighted else torch.ones(6)

    def sigmoid_loss(x):
        p = x.sigmoid()
        hot = F.one_hot(target, 5)[:, :4]
        p_t, alpha = torch.where(hot == 1, p, 1 - p), torch.where(hot == 1, 0.25, 0.75)
        return (-alpha * (1 - p_t) ** 2 * p_t.log() * factor[:, None]).sum()

    def softmax_loss(x):
        p_t = x.softmax(1).gather(1, inside[:, None])[:, 0]
        return (-0.25 * (1 - p_t) ** 2 * p_t.log() * (weight[inside] if weighted else 1)).sum()

    inside = target.clamp(max=3)
    for own, reference, targets in (
        (mmcv_ops.sigmoid_focal_loss, sigmoid_loss, target),
        (mmcv_ops.softmax_focal_loss, softmax_loss, inside),
    ):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        loss, expected = own(one, targets, 2.0, 0.25, weight, 'sum'), reference(other)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, other.grad)


def test_focal_loss_is_finite_far_out():
    """Logits of +-200 in float32 give finite losses and gradients."""
    x = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(x, torch.tensor([1, 1]), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    torch.testing.assert_close(loss.item(), 0.75 * 200.0 + 0.25 * 200.0)


def test_roi_align_exports():
    """torch.export traces a module with mmcv's RoIAlign, which compiled operators do not allow."""
    pool = mmcv_ops.RoIAlign((3, 2), 0.25, 2)
    maps, rois = torch.randn(2, 3, 9, 11), ROIS.float()
    program = torch.export.export(pool, (maps, rois))
    torch.testing.assert_close(program.module()(maps, rois), pool(maps, rois))
