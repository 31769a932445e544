"""Replacement for ``mmcv._ext``: mmcv's operators on top of torchvision's, without compiled code.

``mmcv.ops`` calls these functions like those of its compiled module, with tensors to write results into. Signatures are
those that the Python code of mmcv 2.0 to 2.2 and onedl-mmcv 2.3 uses; the operators are written from their definitions.
Operators that are not implemented here raise when they are called.

This file imports nothing from the package, so it can be loaded before the package.

Differences from mmcv's compiled operators:

- float16 and bfloat16 inputs are pooled, convolved and compared in float32, on every device.
- Inputs may have any strides, including channels-last memory.
- In Gaussian soft-NMS, two boxes without an area do not change each other's score, instead of making it NaN.
- With ``torch.use_deterministic_algorithms``, gradients on CUDA are deterministic, at a cost in memory and time.

Legend: B images, C channels, (H, W) size of a map, K RoIs, (P, Q) bins of a RoI, N boxes, L levels.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401, registers its operators with torch
from torch import Tensor

SUPPRESS, LINEAR, GAUSSIAN = range(3)  # mmcv's methods of soft-NMS
PICKS = 64  # picks of soft-NMS between two checks for ties
ROIS = 128  # RoIs whose gradients are computed at once under deterministic algorithms
BLOCK = 128  # rows of the overlap matrix that are computed at once


def __getattr__(name: str) -> Callable:
    """Return a function that raises when called, for operators that torchvision does not have."""
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args, **kwargs):
        raise RuntimeError(
            f'{name} of mmcv.ops needs compiled mmcv; torchvision, which replaces it here, does not have '
            'it. `OPS=compiled make env` compiles mmcv, as does `MMCV_WITH_OPS=1 pip install '
            '--no-build-isolation mmcv==2.1.0`; both need a C++ compiler, and for a GPU the CUDA '
            'toolkit of torch'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def get_compiler_version() -> str:
    """Return the compiler for mmcv's environment report."""
    return 'torchvision'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version for mmcv's environment report."""
    return 'not available'


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in float64 if any of them is in float64, otherwise in float32."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return [tensor.to(dtype) for tensor in tensors]


def _as_float32(value: float) -> float:
    """Round a threshold to float32, as mmcv does, so an overlap equal to the threshold compares as equal."""
    return float(np.float32(value))


def _has_private(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _must_be_deterministic(x: Tensor) -> bool:
    """Return whether torchvision's gradients, whose order of summation varies on CUDA, must not be used."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def _gradients(function: Callable, inputs: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of ``function(*inputs)`` with respect to its inputs, by autograd."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(
            function(*inputs), inputs, grad_output, allow_unused=True
        )  # without use_mask, the mask is unused


# --- RoIAlign: Mask R-CNN, https://arxiv.org/abs/1703.06870, section 3 ---


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool maps (B, C, H, W) over RoIs (K, 5) into ``output`` (K, C, P, Q).

    Raises:
        RuntimeError: If ``pool_mode`` is not 1 (average).
    """
    if pool_mode != 1:
        raise RuntimeError(
            "RoIAlign(pool_mode='max') needs compiled mmcv; torchvision, which replaces it here, has "
            "only pool_mode='avg'. `OPS=compiled make env` compiles mmcv"
        )
    maps, boxes = _at_least_float32(input, rois)
    output.copy_(
        torch.ops.torchvision.roi_align(
            maps, boxes, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the maps into ``grad_input`` (B, C, H, W)."""
    grad, boxes = _at_least_float32(grad_output, rois)
    how = (spatial_scale, aligned_height, aligned_width)
    if _must_be_deterministic(grad):
        grad_input.copy_(_roi_align_gradient(grad, boxes, grad_input.shape, spatial_scale, sampling_ratio, aligned))
    elif _has_private('_roi_align_backward'):
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(grad, boxes, *how, *grad_input.shape, sampling_ratio, aligned)
        )
    else:  # pooling is linear, so its gradient does not depend on the maps
        maps = torch.zeros_like(grad_input, dtype=grad.dtype)
        pool = torch.ops.torchvision.roi_align
        grad_input.copy_(*_gradients(lambda x: pool(x, boxes, *how, sampling_ratio, aligned), (maps,), grad))


def _axis_weights(start: Tensor, end: Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """Return the weight of each of ``size`` pixels in each bin along one axis of a RoI, (K, bins, size).

    RoIAlign averages a grid of bilinearly interpolated points per bin. Grid and interpolation are products of a factor
    for y and one for x, so each axis has weights of its own. Points more than one pixel outside of the map count as
    zero.

    Args:
        start (Tensor): Start of each RoI on the axis in pixels of the map, (K, ).
        end (Tensor): End of each RoI on the axis, (K, ).
        bins (int): Number of bins on the axis.
        size (int): Size of the map on the axis.
        sampling_ratio (int): Points per bin on the axis; 0 chooses ceil(length / bins) for each RoI.
        aligned (bool): Whether RoIs may be shorter than one pixel.
    """
    length = end - start if aligned else (end - start).clamp(min=1)
    points = torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else (length / bins).ceil()
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    first = torch.arange(bins, device=start.device, dtype=start.dtype)  # (bins, )
    weights = start.new_zeros(len(start), bins, size)
    for point in range(int(points.max()) if len(points) else 0):
        place = start[:, None] + (first + ((point + 0.5) / points)[:, None]) * (length / bins)[:, None]  # (K, bins)
        counts = (point < points)[:, None] & (place >= -1) & (place <= size)
        tent = (1 - (place.clamp(0, size - 1)[..., None] - pixels).abs()).clamp(min=0)  # (K, bins, size)
        weights += torch.where(counts[..., None], tent, 0)
    return weights / points.clamp(min=1)[:, None, None]


def _roi_align_gradient(
    grad: Tensor, rois: Tensor, shape: tuple[int, ...], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return the gradient of the maps by matrix products, which are deterministic on CUDA.

    With weights A of the rows and B of the columns of a RoI, pooling is A f B^T, and the gradient of f is A^T grad B.
    """
    _, channels, height, width = shape
    result = grad.new_zeros(shape)
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).unbind(1)
    rows = _axis_weights(y1, y2, grad.shape[2], height, sampling_ratio, aligned)  # (K, P, H)
    columns = _axis_weights(x1, x2, grad.shape[3], width, sampling_ratio, aligned)  # (K, Q, W)
    for image in range(len(result)):
        for some in (rois[:, 0] == image).nonzero().squeeze(1).split(ROIS):
            wide = grad[some] @ columns[some, None]  # (k, C, P, W)
            result[image] += (
                (rows[some].flatten(0, 1).t() @ wide.transpose(1, 2).reshape(-1, channels * width))
                .view(height, channels, width)
                .transpose(0, 1)
            )  # rows (k P, H), wide (k P, C W)
    return result


# --- Sampling at arbitrary positions, for deterministic gradients of the operators below ---


def _sample(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample maps bilinearly, with zeros outside.

    Unlike that of ``grid_sample``, the gradient is deterministic on CUDA.

    Args:
        maps (Tensor): Maps of shape (B, C, H, W).
        y (Tensor): Row of each position in pixels, 0 at the centre of the first row, (B, T).
        x (Tensor): Column of each position, (B, T).

    Returns:
        Tensor: Samples of shape (B, C, T).
    """
    height, width = maps.shape[2:]
    image = torch.arange(len(maps), device=maps.device)[:, None]
    top, left = y.floor(), x.floor()
    result = maps.new_zeros(())
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            r, c = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
            values = maps.permute(0, 2, 3, 1)[image, r, c]  # (B, T, C)
            result = result + values * torch.where(inside, weight_y * weight_x, 0)[..., None]
    return result.transpose(1, 2)


# --- Deformable convolution: https://arxiv.org/abs/1703.06211, with a mask https://arxiv.org/abs/1811.11168 ---


class _Deform:
    """Deformable convolution by torchvision, with or without a mask.

    Args:
        stride (tuple[int, int]): Stride in rows and columns; padding and dilation have the same order.
        padding (tuple[int, int]): Zeros added on each side.
        dilation (tuple[int, int]): Distance between neighbouring taps.
        groups (int): Number of channel groups of the convolution.
        offset_groups (int): Number of groups of input channels that share offsets and mask.
        use_mask (bool): Whether each tap has a factor.
    """

    def __init__(self, stride, padding, dilation, groups: int, offset_groups: int, use_mask: bool) -> None:
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.offset_groups, self.use_mask = groups, offset_groups, use_mask

    @property
    def _how(self) -> tuple:
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.offset_groups, self.use_mask)

    def forward(self, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        """Convolve (B, C, H, W) with a weight (O, C / groups, kh, kw); returns (B, O, H', W')."""
        if _must_be_deterministic(input):
            return self._by_samples(input, weight, offset, mask, bias)
        return torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *self._how)

    def backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of input, weight, offset, mask and bias."""
        if not _must_be_deterministic(grad) and _has_private('_deform_conv2d_backward'):
            return torch.ops.torchvision._deform_conv2d_backward(grad, input, weight, offset, mask, bias, *self._how)
        return _gradients(self.forward, (input, weight, offset, mask, bias), grad)

    def _by_samples(self, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        """Convolve by definition: sample each tap at its offset, then multiply matrices."""
        (batch, channels), (kh, kw), (height, width) = input.shape[:2], weight.shape[2:], offset.shape[2:]
        tap = torch.arange(kh * kw, device=input.device)
        row = torch.arange(height, device=input.device) * self.stride[0] - self.padding[0]
        column = torch.arange(width, device=input.device) * self.stride[1] - self.padding[1]
        moved = offset.view(batch, self.offset_groups, kh * kw, 2, height, width)
        y = moved[:, :, :, 0] + ((tap // kw * self.dilation[0])[:, None] + row)[..., None]  # (B, G, T, H', W')
        x = moved[:, :, :, 1] + ((tap % kw * self.dilation[1])[:, None] + column)[:, None]
        maps = input.reshape(batch * self.offset_groups, -1, *input.shape[2:])
        values = _sample(maps, y.reshape(len(maps), -1), x.reshape(len(maps), -1))
        values = values.view(batch, self.offset_groups, -1, kh * kw, height, width)
        if self.use_mask:
            values = values * mask.view(batch, self.offset_groups, 1, kh * kw, height, width)
        values = values.reshape(batch, self.groups, channels // self.groups * kh * kw, height * width)
        products = weight.view(self.groups, len(weight) // self.groups, -1) @ values  # (B, groups, O / groups, H' W')
        return products.reshape(batch, len(weight), height, width) + bias[:, None, None]


def _plain(
    input: Tensor,
    weight: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> tuple[_Deform, Tensor, Tensor]:
    """Return mmcv's convolution without a mask, and the arguments it ignores: an unused mask and a zero bias."""
    deform = _Deform((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group, use_mask=False)
    return deform, weight.new_zeros(len(input), 1), weight.new_zeros(len(weight))


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **how
) -> None:
    """Write the deformable convolution of ``input`` (B, C, H, W) into ``output`` (B, O, H', W')."""
    input, weight, offset = _at_least_float32(input, weight, offset)
    deform, mask, bias = _plain(input, weight, **how)
    output.copy_(deform.forward(input, weight, offset, mask, bias))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **how,
) -> None:
    """Write the gradients of input and offset, and store that of the weight in ``columns``.

    torchvision computes all of them at once, and mmcv passes ``columns`` to :func:`deform_conv_backward_parameters`
    next.
    """
    input, weight, offset, grad_output = _at_least_float32(input, weight, offset, grad_output)
    deform, mask, bias = _plain(input, weight, **how)
    for_input, for_weight, for_offset, _, _ = deform.backward(grad_output, input, weight, offset, mask, bias)
    grad_input.copy_(for_input)
    grad_offset.copy_(for_offset)
    columns.resize_(weight.shape).copy_(for_weight)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **how,
) -> None:
    """Add ``scale`` times the gradient of the weight to ``grad_weight`` (O, C / groups, kh, kw)."""
    if columns.shape != grad_weight.shape:
        weight = torch.zeros_like(grad_weight)  # the weight's gradient does not depend on its value
        deform_conv_backward_input(
            input, offset, grad_output, torch.empty_like(input), torch.empty_like(offset), weight, columns, **how
        )
    grad_weight.add_(columns, alpha=scale)


def _modulated(
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> _Deform:
    return _Deform(
        (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group, use_mask=True
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **how,
) -> None:
    """Write the deformable convolution with a mask of ``input`` (B, C, H, W) into ``output`` (B, O, H', W')."""
    input, weight, offset, mask, bias = _at_least_float32(input, weight, offset, mask, bias)
    bias = bias if how['with_bias'] else weight.new_zeros(len(weight))
    output.copy_(_modulated(**how).forward(input, weight, offset, mask, bias))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **how,
) -> None:
    """Write the gradients of all inputs."""
    *inputs, grad = _at_least_float32(input, weight, offset, mask, bias, grad_output)
    if not how['with_bias']:
        inputs[4] = inputs[1].new_zeros(len(weight))
    gradients = _modulated(**how).backward(grad, *inputs)
    for out, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients):
        out.copy_(gradient)
    if how['with_bias']:
        grad_bias.copy_(gradients[4])


# --- Deformable attention over levels: Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3 ---


def _attend(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[list[int]]) -> Tensor:
    """Return the weighted sum of samples, (B, queries, heads * C).

    Args:
        value (Tensor): Concatenated maps of all levels, (B, sum of H * W, heads, C).
        locations (Tensor): Positions as fractions of width and height, x first, (B, queries, heads, L, points, 2).
        weights (Tensor): Weight of each sample, (B, queries, heads, L, points).
        shapes (list[list[int]]): Size (H, W) of each level.
    """
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    result = value.new_zeros(())
    levels = value.split([height * width for height, width in shapes], dim=1)
    for level, ((height, width), maps) in enumerate(zip(shapes, levels)):
        maps = maps.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        places = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B heads, queries, points, 2)
        if _must_be_deterministic(maps):
            x, y = (places.flatten(1, 2) * places.new_tensor([width, height]) - 0.5).unbind(-1)
            samples = _sample(maps, y, x).view(batch * heads, channels, queries, points)
        else:
            samples = F.grid_sample(maps, 2 * places - 1, align_corners=False)  # (B heads, C, queries, points)
        factors = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (B heads, 1, queries, points)
        result = result + (samples * factors).sum(-1)
    return result.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    im2col_step: int,
) -> Tensor:
    """Return deformable attention, (B, queries, heads * C); see :func:`_attend`."""
    inputs = _at_least_float32(value, sampling_locations, attention_weights)
    return _attend(*inputs, value_spatial_shapes.tolist()).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Write the gradients of value, sampling locations and attention weights."""
    *inputs, grad = _at_least_float32(value, sampling_locations, attention_weights, grad_output)
    shapes = value_spatial_shapes.tolist()
    gradients = _gradients(lambda *tensors: _attend(*tensors, shapes), tuple(inputs), grad)
    for out, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        out.copy_(gradient)


# --- Focal loss: RetinaNet, https://arxiv.org/abs/1708.02002, section 3.2 ---


def _class_weights(target: Tensor, weight: Tensor) -> Tensor:
    """Return the weight of each row's class, (N, 1); 1 if there are no weights, and for the background, class C."""
    if not weight.numel():
        return weight.new_ones(())
    return torch.cat([weight, weight.new_ones(1)])[target][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of logits (N, C) into ``output``; ``target`` (N, ) holds classes, C for the background."""
    x, weight = _at_least_float32(input, weight)
    is_class = F.one_hot(target, x.shape[1] + 1)[:, :-1].bool()
    p = x.sigmoid()
    loss = torch.where(
        is_class, -alpha * (1 - p) ** gamma * F.logsigmoid(x), -(1 - alpha) * p**gamma * F.logsigmoid(-x)
    )
    output.copy_(loss * _class_weights(target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its logit into ``grad_input`` (N, C).

    It follows from dp / dx = p (1 - p).
    """
    x, weight = _at_least_float32(input, weight)
    is_class = F.one_hot(target, x.shape[1] + 1)[:, :-1].bool()
    p, q = x.sigmoid(), (-x).sigmoid()
    for_class = alpha * q**gamma * (gamma * p * F.logsigmoid(x) - q)
    for_other = (1 - alpha) * p**gamma * (p - gamma * q * F.logsigmoid(-x))
    grad_input.copy_(torch.where(is_class, for_class, for_other) * _class_weights(target, weight))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the loss of each row of probabilities (N, C), that of its class, into ``output`` (N, )."""
    p, weight = _at_least_float32(input, weight)
    p = p.gather(1, target[:, None])  # (N, 1)
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    output.copy_((-alpha * (1 - p) ** gamma * log_p * _class_weights(target, weight)).squeeze(1))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its logits into ``grad_input`` (N, C).

    It follows from dp_t / dx_c = p_t (is_t - p_c), where is_t is 1 if c = t and otherwise 0.
    """
    p, weight = _at_least_float32(input, weight)
    p_t = p.gather(1, target[:, None])
    log_p = p_t.clamp(min=torch.finfo(p.dtype).tiny).log()
    factor = alpha * (1 - p_t) ** gamma * (gamma * p_t * log_p / (1 - p_t).clamp(min=torch.finfo(p.dtype).tiny) - 1)
    is_class = F.one_hot(target, p.shape[1])
    grad_input.copy_(factor * (is_class - p) * _class_weights(target, weight))


# --- Non-maximum suppression ---


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, best first, (M, ).

    A box is removed if its overlap with a better box that is kept exceeds the threshold. Equal scores are ordered as by
    ``torch.sort``, which mmcv uses. NaN sorts before any number.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, (N, 4).
        scores (Tensor): Scores, (N, ).
        iou_threshold (float): Threshold of intersection over union, rounded to float32.
        offset (int): 1 if x2 and y2 are the last pixels inside of a box, 0 if they are its edge.
    """
    (boxes,) = _at_least_float32(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    order = scores.sort(0, descending=True)[1]
    ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=boxes.dtype)
    return order[torch.ops.torchvision.nms(boxes[order], ranks, _as_float32(iou_threshold))]


def _overlaps(boxes: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """Return intersection over union of boxes (4, N) with others (4, M), (N, M); NaN if neither box has an area."""
    boxes = boxes[:, :, None]  # (4, N, 1)
    inter = np.minimum(boxes[2], others[2])  # (N, M)
    inter -= np.maximum(boxes[0], others[0])
    height = np.minimum(boxes[3], others[3])
    height -= np.maximum(boxes[1], others[1])
    if offset:
        inter += offset
        height += offset
    np.fmax(inter, 0, out=inter)
    np.fmax(height, 0, out=height)
    inter *= height
    areas, other_areas = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (boxes, others))
    union = np.add(areas, other_areas, out=height)
    union -= inter
    inter /= union
    return inter


def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """Return the index of each box that is kept, best first, followed by those of the boxes it suppresses.

    A box suppresses those whose overlap with it is at least the threshold. ``dets`` (N, 5) holds corners and scores, on
    the CPU.
    """
    (dets,) = _at_least_float32(dets)
    boxes = dets[:, :4].t().contiguous().numpy()
    rest = dets[:, 4].sort(0, descending=True)[1].numpy()
    groups = []
    while len(rest):
        with np.errstate(invalid='ignore', divide='ignore'):
            (overlap,) = _overlaps(boxes[:, rest[:1]], boxes[:, rest], 0)
        goes = overlap >= np.float32(iou_threshold)
        goes[0] = True
        groups.append(rest[goes].tolist())
        rest = rest[~goes]
    return groups


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap better ones: Soft-NMS, https://arxiv.org/abs/1704.04503, algorithm 1.

    The best remaining box is picked, and the scores of the others decay by their overlap with it. Boxes whose score
    falls below ``min_score`` are removed. Among equal scores, mmcv picks the first in its list. There, a picked box
    swaps places with the first remaining one, and the last box replaces a removed one.

    Args:
        boxes (Tensor): Corners, (N, 4), on the CPU.
        scores (Tensor): Scores, (N, ).
        dets (Tensor): Output of shape (N, 5); the picked boxes and their scores are written to the first M rows.
        iou_threshold (float): Smallest overlap for which methods 0 and 1 change a score.
        sigma (float): Sigma of method 2.
        min_score (float): Smallest score that is kept.
        method (int): Factor of a score: 0 for zero, 1 for one minus the overlap, 2 for exp(-overlap^2 / sigma).
        offset (int): Offset as in :func:`nms`.

    Returns:
        Tensor: Indices of the picked boxes, (M, ).
    """
    boxes, scores = _at_least_float32(boxes.detach(), scores.detach())
    corners, values = boxes.t().contiguous().numpy(), scores.numpy()  # (4, N)
    min_score = values.dtype.type(_as_float32(min_score))
    sizes = corners[2:] - corners[:2] + offset
    is_plain = len(values) > 0 and min_score > 0 and (sizes >= 0).all() and np.isfinite(values).all()
    order = np.argsort(corners[0], kind='stable')  # by x1, so boxes that may overlap are adjacent
    with np.errstate(invalid='ignore', divide='ignore', over='ignore', under='ignore'):
        decays = _decays(corners[:, order], np.float32(iou_threshold), np.float32(sigma), method, offset)
        picked = _pick(decays, values[order], min_score) if is_plain else None
        if picked is None:
            picked = _pick_in_order(decays, values[order], np.argsort(order), min_score)
    indices = order[picked[0]]
    dets[: len(indices)] = torch.from_numpy(np.concatenate([corners[:, indices], picked[1][None]]).T)
    return torch.from_numpy(indices)


def _decays(boxes: np.ndarray, iou_threshold: float, sigma: float, method: int, offset: int) -> np.ndarray:
    """Return the factor by which each box, when picked, multiplies the score of each other box, (N, N).

    Boxes (4, N) are in ascending order of x1, so a block of boxes overlaps none that starts after its largest x2. Pairs
    of different classes, which are separated by an offset, therefore cost next to nothing.
    """
    count = boxes.shape[1]
    has_points = not (boxes[2:] > boxes[:2]).all()  # boxes without an area, whose overlap may be 0 / 0
    decays = np.ones((count, count), boxes.dtype)
    for start in range(0, count, BLOCK):
        rows = slice(start, start + BLOCK)
        end = count
        if iou_threshold > 0 or method == GAUSSIAN:  # otherwise boxes that do not overlap count, too
            end = max(start + BLOCK, int(np.searchsorted(boxes[0], boxes[2, rows].max() + offset, side='right')))
        decay = _overlaps(boxes[:, rows], boxes[:, start:end], offset)
        if method == GAUSSIAN:
            overlapping = decay > 0
            some = decay[overlapping]
            decay = np.ones_like(decay)
            decay[overlapping] = np.exp(-(some * some) / sigma, dtype=np.float64)  # rounded once, as C's expf does
        else:
            acts = decay >= iou_threshold
            if method == LINEAR:
                decay = 1 - np.nan_to_num(decay, copy=False) * acts if has_points else 1 - decay * acts
            else:
                decay = ~acts
        decays[rows, start:end] = decay
        decays[start:end, rows] = decay.T
    return decays


def _pick(decays: np.ndarray, scores: np.ndarray, min_score: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the picked boxes, best first, and their scores.

    None if the order of equal scores would matter, or if no score reaches ``min_score``.

    A box that no other box affects keeps its score, so only the rest is picked one by one. Boxes below ``min_score``
    are not removed here: scores only fall, and the loop ends when the best one is below.
    """
    np.fill_diagonal(decays, 1)
    touched = decays.min(1) < 1
    touched[scores < min_score] = False
    rest = np.flatnonzero(touched)
    among = decays if len(rest) == len(decays) else decays[np.ix_(rest, rest)]
    picked = _pick_one_by_one(among, scores[rest], min_score)
    if picked is None:
        return None
    alone = np.flatnonzero(~touched & (scores >= min_score))
    picks, values = np.concatenate([rest[picked[0]], alone]), np.concatenate([picked[1], scores[alone]])
    order = np.argsort(-values)
    picks, values = picks[order], values[order]
    return None if not len(picks) or (values[1:] == values[:-1]).any() else (picks, values)


def _pick_one_by_one(decays: np.ndarray, scores: np.ndarray, min_score: float) -> tuple[np.ndarray, np.ndarray] | None:
    count = len(scores)
    rows, size = list(decays), min(PICKS, count)
    history = np.empty((size + 1, count), scores.dtype)  # scores before each pick
    steps = list(history)
    history[0] = scores
    np.fill_diagonal(decays, 0)  # a picked score becomes zero, below min_score, so it is not picked again
    picks, values, multiply = [], [scores[:0]], np.multiply
    while len(picks) < count:
        some = []
        for now, then in zip(steps[: count - len(picks)], steps[1:]):
            best = now.argmax()
            multiply(now, rows[best], then)
            some.append(best)
        value = history[np.arange(len(some)), some]
        stays = value >= min_score
        end = len(some) if stays.all() else int(stays.argmin())
        if (history[:end] == value[:end, None]).sum() > end:
            return None
        picks += some[:end]
        values.append(value[:end])
        if end < len(some):
            break
        history[0] = history[len(some)]
    return np.array(picks, dtype=int), np.concatenate(values)


def _pick_in_order(
    decays: np.ndarray, scores: np.ndarray, boxes: np.ndarray, min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute :func:`_pick` for any input by maintaining mmcv's list; ``boxes`` (N, ) holds the box at each position.

    A NaN stays in the list until it comes first.
    """
    scores, boxes = scores[boxes], boxes.copy()
    count, first = len(scores), 0
    while first < count:
        best = first
        if not np.isnan(scores[first]):
            best += int(np.where(np.isnan(scores[first:count]), -np.inf, scores[first:count]).argmax())
        for array in (scores, boxes):
            array[[first, best]] = array[[best, first]]
        row, first = decays[boxes[first]], first + 1
        scores[first:count] *= row[boxes[first:count]]
        goes = scores[first:count] < min_score
        if goes.any():
            stay = len(goes) - int(goes.sum())
            holes, fillers = first + np.flatnonzero(goes[:stay]), first + stay + np.flatnonzero(~goes[stay:])[::-1]
            for array in (scores, boxes):
                array[holes] = array[fillers]
            count = first + stay
    return boxes[:count], scores[:count]
