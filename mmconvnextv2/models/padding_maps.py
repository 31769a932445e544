"""Necks that keep maps zero at invalid sites, for a backbone with ``valid_sites=True``.

Such a backbone's maps are zero at invalid sites and nowhere else. The bias of a convolution makes those sites non-zero
again, the next 3 x 3 convolution reads them, and GroupNorm averages over them. Here each layer's output is zero there,
as a map is outside of its border, and GroupNorm counts valid sites.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.autocast import excluding_autocast


def valid_of(features: Tensor) -> Tensor:
    """Return 1 at the valid sites of a map (B, C, H, W), those of a channel that is not 0, else 0; (B, 1, H, W)."""
    return (features != 0).any(1, keepdim=True).to(features.dtype)


def group_norm_of_valid(features: Tensor, valid: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalise a map (B, C, H, W) by mean and variance of each group's valid sites, in float32 at least.

    Args:
        features (Tensor): Map, (B, C, H, W).
        valid (Tensor): 1 at valid sites, else 0, (B, 1, H, W).
        norm (nn.GroupNorm): Number of groups, weights and ``eps``.
    """
    values = features if features.element_size() >= 4 else features.float()
    groups, counted = values.unflatten(1, (norm.num_groups, -1)), valid.to(values.dtype).unsqueeze(2)  # (B, G, ...)
    count = (counted.sum((2, 3, 4), keepdim=True) * groups.shape[2]).clamp(min=1)
    centred = groups - (groups * counted).sum((2, 3, 4), keepdim=True) / count
    variance = (centred.square() * counted).sum((2, 3, 4), keepdim=True) / count
    normed = (centred * (variance + norm.eps).rsqrt()).flatten(1, 2)
    weight, bias = (each.to(values.dtype).view(-1, 1, 1) for each in (norm.weight, norm.bias))
    return (normed * weight + bias).to(features.dtype)


def run_on_valid(layer: Any, features: Tensor, valid: Tensor) -> Tensor:
    """Run a ``ConvModule`` of mmcv whose output is zero at invalid sites, and whose GroupNorm counts valid ones."""
    if not isinstance(layer.norm, nn.GroupNorm):
        return layer(features) * valid
    features = group_norm_of_valid(layer.conv(features), valid, layer.norm)
    return (layer.activate(features) if layer.with_activation else features) * valid


def halved(valid: Tensor) -> Tensor:
    """Return the valid sites of a map of twice the stride: those of which any of 2 x 2 sites is valid."""
    return F.max_pool2d(valid, 2, ceil_mode=True)


def resize_valid(features: Tensor, valid: Tensor, finer: Tensor, align_corners: bool = False) -> Tensor:
    """Resize a map bilinearly from its valid sites alone, as it is resized without padding.

    Args:
        features (Tensor): Map, zero at invalid sites, (B, C, H, W).
        valid (Tensor): 1 at its valid sites, else 0, (B, 1, H, W).
        finer (Tensor): The same of the map that is wanted, (B, 1, H', W').
        align_corners (bool): As in ``F.interpolate``. Defaults to False.
    """
    values, weights = (
        F.interpolate(each, finer.shape[2:], mode='bilinear', align_corners=align_corners) for each in (features, valid)
    )
    return values / weights.masked_fill(weights == 0, 1) * finer


class ValidCells:
    """Cells that divide the smallest rectangle holding the valid sites of a map; sums and weights are in float32.

    Args:
        valid (Tensor): 1 at valid sites, else 0, (B, 1, H, W).
    """

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid
        self.spans = _span(valid, 2), _span(valid, 3)
        self.dtype = torch.promote_types(valid.dtype, torch.float32)

    def average(self, features: Tensor, cells: int) -> Tensor:
        """Return the mean over the valid sites of n x n cells, (B, C, n, n), of a map (B, C, H, W), zero at invalid
        sites.

        Cells overlap where n does not divide the rectangle, as those of ``nn.AdaptiveAvgPool2d``.
        """
        with excluding_autocast(features):
            cell, members = torch.arange(cells, device=features.device).view(-1, 1), []
            for line, count in self.spans:
                start, end = cell * count // cells, ((cell + 1) * count + cells - 1) // cells
                members.append(((line >= start) & (line < end)).to(self.dtype).unsqueeze(1))  # (B, 1, n, length)
            down, across = members
            count = down @ self.valid.to(self.dtype) @ across.mT
            return (down @ features.to(self.dtype) @ across.mT / count.masked_fill(count == 0, 1)).to(features.dtype)

    def spread(self, pooled: Tensor, align_corners: bool) -> Tensor:
        """Resize cells (B, C, n, n) to the rectangle bilinearly; returns a map (B, C, H, W), zero at invalid sites."""
        with excluding_autocast(pooled):
            cells = pooled.shape[2]
            cell, shares = torch.arange(cells, device=pooled.device), []
            for line, count in self.spans:
                line, count = line.mT.to(self.dtype), count.to(self.dtype)  # (B, length, 1) and (B, 1, 1)
                if align_corners:
                    place = line * ((cells - 1) / (count - 1).clamp(min=1))
                else:
                    place = (line + 0.5) * (cells / count) - 0.5
                shares.append((1 - (place.clamp(0, cells - 1) - cell).abs()).clamp(min=0).unsqueeze(1))
            up, along = shares
            return (up @ pooled.to(self.dtype) @ along.mT * self.valid).to(pooled.dtype)


def _span(valid: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the place of each row (``dim=2``) or column (3) after the first one with a valid site, (B, 1, length), and
    how many there are from that to the last one, (B, 1, 1)."""
    has_valid = valid.amax((1, 5 - dim)) > 0  # (B, length)
    line = torch.arange(has_valid.shape[1], device=valid.device)
    first = torch.where(has_valid, line, has_valid.shape[1]).amin(1).view(-1, 1, 1)
    last = torch.where(has_valid, line, -1).amax(1).view(-1, 1, 1)
    return line - first, (last - first + 1).clamp(min=1)


class ValidTopDown:
    """``forward`` of ``FPN``, of MMDetection and MMSegmentation, with maps that stay zero at invalid sites."""

    def forward(self: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one map (B, D, H, W) per level for maps (B, C, H, W) of the backbone."""
        inputs = inputs[self.start_level : self.backbone_end_level]
        valid = [valid_of(each) for each in inputs]
        tops = [run_on_valid(*each) for each in zip(self.lateral_convs, inputs, valid)]
        for finer in range(len(tops) - 2, -1, -1):
            options = dict(self.upsample_cfg)
            if 'scale_factor' not in options:
                options['size'] = tops[finer].shape[2:]
            coarse = F.interpolate(tops[finer + 1], **options)
            tops[finer] = tops[finer] + coarse * valid[finer]
        outputs = [run_on_valid(*each) for each in zip(self.fpn_convs, tops, valid)]
        sources: dict[Any, Tensor] = dict(on_input=inputs[-1], on_lateral=tops[-1], on_output=outputs[-1])
        source = sources.get(self.add_extra_convs, outputs[-1])
        for layer in self.fpn_convs[len(tops) :]:
            valid.append(halved(valid[-1]))
            outputs.append(run_on_valid(layer, source, valid[-1]))
            source = F.relu(outputs[-1]) if self.relu_before_extra_convs else outputs[-1]
        while len(outputs) < self.num_outs:
            outputs.append(outputs[-1][:, :, ::2, ::2])
        return tuple(outputs)


class ValidMapper:
    """``forward`` of MMDetection's ``ChannelMapper`` with maps that stay zero at invalid sites."""

    def forward(self: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one map (B, D, H, W) per level for maps (B, C, H, W) of the backbone."""
        valid = [valid_of(each) for each in inputs]
        outputs = [run_on_valid(*each) for each in zip(self.convs, inputs, valid)]
        source = inputs[-1]
        for layer in self.extra_convs or ():
            valid.append(halved(valid[-1]))
            outputs.append(run_on_valid(layer, source, valid[-1]))
            source = outputs[-1]
        return tuple(outputs)
