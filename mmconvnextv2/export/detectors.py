"""Graphs of MMDetection's detectors, from pixels to boxes, scores, labels and masks.

Backbone, neck, heads, anchors and box coders are MMDetection's own. Written here, for whole batches, is what
MMDetection does image by image with shapes that depend on values: the choice of the best candidates, NMS, and the
assignment of RoIs to levels. Lists have a fixed length, filled up with entries of score 0.

Boxes, scores and masks are computed in float32 in a float16 graph, since float16 holds coordinates above 1024 to whole
pixels only.

Legend: B images, L levels, N candidates, R RoIs, K detections, C classes, P pixels per side of a mask.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import UserError
from . import suppression
from .pixels import PixelGraph
from .suppression import METHODS, REMOVED

MOST_SOFT = 4096  # candidates of an image in soft-NMS, the best ones
STRIDE = 32  # of the last stage, whose multiples the necks need
EXACT = 1e-3  # limits below are float32's
MOST_LOST = {True: 0.1, False: 0.5}  # share of detections that may go another way in NMS, by whether a file is exact


class Found(NamedTuple):
    """Boxes (B, N, 4), their scores (B, N), ``REMOVED`` for entries that only fill up, and labels (B, N)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def best(self, count: int) -> 'Found':
        """Return the ``count`` best ones, or all if there are fewer, best first."""
        scores, places = self.scores.topk(min(count, self.scores.shape[1]), dim=1)
        return Found(take(self.boxes, places), scores, self.labels.gather(1, places))


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return, of each image of values (B, N, D), those at ``places`` (B, K), as (B, K, D)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


class LevelRoIAlign(nn.Module):
    """MMDetection's ``SingleRoIExtractor`` in float32, with RoIs of one level pooled together, as ONNX can.

    Args:
        extractor (SingleRoIExtractor): The extractor that it replaces.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor, self.num_inputs = extractor, extractor.num_inputs

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool maps (B, D, H, W), one per level, for RoIs (R, 5); returns (R, D, S, S) in the dtype of the maps."""
        rois, size = rois.float(), self.extractor.roi_layers[0].output_size
        levels = self.extractor.map_roi_levels(rois, len(maps))
        result = rois.new_zeros(rois.shape[0], maps[0].shape[1], *size)
        for level, (values, layer) in enumerate(zip(maps, self.extractor.roi_layers)):
            (places,) = torch.nonzero(levels == level, as_tuple=True)
            pooled = torch.ops.torchvision.roi_align(
                values.float(), rois[places], layer.spatial_scale, *size, layer.sampling_ratio, layer.aligned
            )
            result = result.index_copy(0, places, pooled)
        return result.to(maps[0].dtype)


class DetectorGraph(PixelGraph):
    """Base of the graphs of detectors; see :func:`detector_kind`.

    Outputs are ``boxes`` float32 (B, K, 4), corners in pixels of the input; ``scores`` float32 (B, K), the best first,
    0 for entries that only fill up; ``labels`` int64 (B, K), -1 for those; with masks also ``masks``, (B, K, P, P)
    float32 probabilities in each box or (B, K, H, W) uint8.

    Args:
        nms (str): ``'recipe'``, ``'hard'`` or ``'outside'``; see ``GraphOptions``. Defaults to ``'recipe'``.
        mask_output (str): ``'boxes'`` or ``'images'``. Defaults to ``'boxes'``.
        args, kwargs: See :class:`PixelGraph`.
    """

    def __init__(self, *args: Any, nms: str = 'recipe', mask_output: str = 'boxes', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.nms, self.mask_output = nms, mask_output
        for module in list(self.model.modules()):
            for name, child in module.named_children():
                if hasattr(child, 'map_roi_levels'):
                    setattr(module, name, LevelRoIAlign(child))
                elif hasattr(child, 'roi_layers') and not isinstance(module, LevelRoIAlign):
                    raise UserError(
                        f'{type(child).__name__} is not exported: use SingleRoIExtractor or --part backbone'
                    )

    output_names: tuple[str, ...] = ('boxes', 'scores', 'labels')

    @property
    def smallest(self) -> int:
        head = self.model.rpn_head if hasattr(self.model, 'rpn_head') else self.model.bbox_head
        return 2 * max(max(stride) for stride in head.prior_generator.strides)

    @property
    def test_cfg(self) -> Any:
        """Settings of the last head, with its NMS."""
        return self.model.bbox_head.test_cfg

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that a reader of the file needs, by name."""
        nms = dict(self.test_cfg.nms)
        if self.nms == 'hard':
            nms['type'] = 'nms'
        return dict(nms='outside' if self.nms == 'outside' else nms, score_threshold=self.test_cfg.get('score_thr', 0))

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        preprocessor, (height, width) = self.model.data_preprocessor, images.shape[2:]
        divisor = max(preprocessor.pad_size_divisor, STRIDE)  # RTMDet's images are padded by its pipeline alone
        padded = F.pad(images, (0, -width % divisor, 0, -height % divisor), value=float(preprocessor.pad_value))
        return self.detect(self.model.extract_feat(padded), (height, width))

    def difference(self, expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str:
        """Describe how detections differ from those that are expected.

        Raises:
            ValueError: If too many, in one of both, lack a partner of the same label, close corners and a close score,
                or an output is not finite. Some may: equal scores and overlaps at the threshold of NMS go either way.
        """
        if not all(torch.isfinite(output).all() for output in found):
            raise UserError('are not finite')
        tolerance, share = min(10 * limit, 0.1), MOST_LOST[limit < EXACT]
        same, other = agreement(expected, found, tolerance), agreement(found, expected, tolerance)
        if same.lost > max(1, share * same.count):
            raise UserError(f"lack {same.lost} of PyTorch's {same.count} detections")
        if other.lost > max(1, share * other.count):
            raise UserError(f"have {other.lost} of {other.count} detections that PyTorch's lack")
        if not same.count:
            return 'no detections in random pixels, so none were compared'
        return (
            f'{same.count - same.lost} of {same.count} detections found, within {same.pixels:.1e} px and '
            f'{same.scores:.1e} of the score'
        )

    def detect(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the outputs for maps of padded images, which have a height and width before padding."""
        raise NotImplementedError

    def suppress(self, found: Found, cfg: Any, count: int) -> Found:
        """Return the ``count`` best candidates after NMS among those of the same label."""
        if self.nms == 'outside':
            return found.best(count)
        nms = dict(cfg)
        apart = 0.0 if nms.get('class_agnostic') else 1.0
        if nms.get('type', 'nms') == 'soft_nms' and self.nms == 'recipe':
            found = found.best(MOST_SOFT)
            scores = suppression.suppress_softly(
                separated(found, apart),
                found.scores,
                float(nms.get('iou_threshold', 0.3)),
                REMOVED / 2,
                float(nms.get('sigma', 0.5)),
                float(nms.get('min_score', 1e-3)),
                METHODS[nms.get('method', 'linear')],
                min(count, found.scores.shape[1]),
            )
        else:
            iou = float(nms.get('iou_threshold', 0.5))
            scores = suppression.suppress(separated(found, apart), found.scores, iou, REMOVED / 2)
        return found._replace(scores=scores).best(count)


class Agreement(NamedTuple):
    """How far two sets of detections agree: their number, those without a partner, and the largest differences."""

    count: int
    lost: int
    pixels: float
    scores: float


def agreement(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> Agreement:
    """Compare boxes (B, K, 4), scores (B, K) and labels (B, K) of each image.

    A partner has the same label, a score within ``tolerance``, and corners within a pixel or 5% of the longer side.
    """
    count, lost, pixels, differences = 0, 0, 0.0, 0.0
    for boxes, scores, labels, other_boxes, other_scores, other_labels in zip(*expected[:3], *found[:3]):
        exists, others = scores > 0, other_scores > 0
        boxes, other_boxes = boxes[exists], other_boxes[others]
        near = (scores[exists][:, None] - other_scores[others]).abs()
        moved = (boxes[:, None] - other_boxes).abs().amax(-1)
        matches = (labels[exists][:, None] == other_labels[others]) & (near <= tolerance)
        count += len(boxes)
        if not matches.numel():
            lost += len(boxes)
            continue
        moved, places = torch.where(matches, moved, torch.inf).min(1)
        side = (boxes[:, 2:] - boxes[:, :2]).amax(-1)
        agrees = moved <= (0.05 * side).clamp(min=1)
        lost += int((~agrees).sum())
        if agrees.any():
            pixels = max(pixels, moved[agrees].max().item())
            differences = max(differences, near.gather(1, places[:, None])[agrees].max().item())
    return Agreement(count, lost, pixels, differences)


def separated(found: Found, apart: float) -> Tensor:
    """Return boxes (B, N, 4), moved so that those of different labels do not overlap unless ``apart`` is 0."""
    step = (found.boxes.amax((1, 2), keepdim=True) + 1) * apart
    return found.boxes + found.labels[..., None].to(found.boxes.dtype) * step


def outputs_of(found: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and labels with zeros, and labels of -1, where there is no detection."""
    exists = found.scores > REMOVED
    return (
        torch.where(exists[..., None], found.boxes, 0.0),
        torch.where(exists, found.scores, 0.0),
        torch.where(exists, found.labels, -1),
    )


def level_candidates(
    head: nn.Module, maps: Sequence[Tensor], cfg: Any, size: tuple[int, int], threshold: float
) -> list[Found]:
    """Return the best candidates of each level of a dense head, with decoded boxes.

    Every level has ``nms_pre`` candidates, filled up where it has fewer, so shapes do not depend on the image's size.

    Args:
        head (nn.Module): A dense head of MMDetection.
        maps (Sequence[Tensor]): Maps of the neck, (B, D, H, W) per level.
        cfg (ConfigDict): ``test_cfg`` of the head.
        size (tuple[int, int]): Height and width of the images without padding, to which boxes are clipped.
        threshold (float): Candidates of this score and below are left out.
    """
    logits, deltas, *factors = ([each.float() for each in levels] for levels in head(maps))
    sizes, count = [each.shape[2:] for each in logits], int(cfg.nms_pre)
    priors = head.prior_generator.grid_priors(sizes, dtype=torch.float32, device=logits[0].device)
    found = []
    for level in range(len(logits)):
        scores = _activate(head, _by_site(logits[level], head.cls_out_channels))  # (B, sites, C)
        classes = scores.shape[2]
        best, places = F.pad(scores.flatten(1), (0, count), value=REMOVED).topk(count, dim=1)  # (B, n)
        sites = (places // classes).clamp(max=scores.shape[1] - 1)
        chosen = take(_by_site(deltas[level], 4), sites)  # (B, n, 4)
        boxes = head.bbox_coder.decode(priors[level][sites].flatten(0, 1), chosen.flatten(0, 1), max_shape=size)
        boxes = boxes.view(-1, count, 4)
        best = torch.where(best > threshold, best, REMOVED)
        if factors:
            factor = take(_by_site(factors[0][level], 1), sites)[..., 0].sigmoid()
            best = torch.where(best > REMOVED, best * factor, REMOVED)
        if cfg.get('min_bbox_size', -1) >= 0:
            large = (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(-1)
            best = torch.where(large, best, REMOVED)
        found.append(Found(boxes, best, places % classes))
    return found


def _by_site(values: Tensor, channels: int) -> Tensor:
    """Return maps (B, A * channels, H, W) as (B, H * W * A, channels)."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)


def _activate(head: nn.Module, logits: Tensor) -> Tensor:
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        return head.loss_cls.get_activation(logits)[..., : head.num_classes]
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]


class OneStageGraph(DetectorGraph):
    """RetinaNet, ATSS, RTMDet and other detectors whose head predicts boxes at every site."""

    def detect(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        cfg = head.test_cfg
        levels = level_candidates(head, maps, cfg, size, float(cfg.get('score_thr', 0)))
        found = Found(*(torch.cat(each, 1) for each in zip(*levels)))
        return outputs_of(self.suppress(found, cfg.nms, cfg.max_per_img))


class TwoStageGraph(DetectorGraph):
    """Faster, Mask and Cascade R-CNN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model.roi_head.with_mask:
            self.output_names = (*DetectorGraph.output_names, 'masks')
        head = self.model.roi_head
        self.is_cascade = isinstance(head.bbox_head, nn.ModuleList)
        self.box_heads = list(head.bbox_head) if self.is_cascade else [head.bbox_head]

    @property
    def test_cfg(self) -> Any:
        return self.model.roi_head.test_cfg

    @property
    def facts(self) -> dict[str, Any]:
        if not self.model.roi_head.with_mask:
            return super().facts
        return dict(super().facts, masks=self.mask_output, mask_threshold=self.test_cfg.mask_thr_binary)

    def detect(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        found = self.classify(maps, self.propose(maps, size), size)
        outputs = outputs_of(found)
        if not self.model.roi_head.with_mask:
            return outputs
        masks = self.masks(maps, found)  # (B, K, P, P)
        if self.mask_output == 'images':
            masks = paste(masks, found.boxes, size) >= self.model.roi_head.test_cfg.mask_thr_binary
            masks = (masks & (found.scores > REMOVED)[..., None, None]).to(torch.uint8)
        return (*outputs, masks)

    def propose(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Found:
        """Return the proposals of the RPN, with NMS by level."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        levels = level_candidates(head, maps, cfg, size, REMOVED / 2)
        boxes, scores, _ = (torch.stack(each, 1) for each in zip(*levels))  # (B, L, n, ...)
        kept = suppression.suppress(
            boxes.flatten(0, 1), scores.flatten(0, 1), float(cfg.nms.iou_threshold), REMOVED / 2
        )
        kept = kept.view(scores.shape)
        found = Found(boxes.flatten(1, 2), kept.flatten(1), torch.zeros_like(kept, dtype=torch.int64).flatten(1))
        return found.best(cfg.max_per_img)

    def classify(self, maps: Sequence[Tensor], proposals: Found, size: tuple[int, int]) -> Found:
        """Return detections, from the scores of all stages and the boxes of the last."""
        exists = proposals.scores > REMOVED
        batch, count = exists.shape
        image = torch.arange(batch, device=exists.device).repeat_interleave(count)[:, None].float()
        boxes, total = proposals.boxes.flatten(0, 1), 0
        for stage, head in enumerate(self.box_heads):
            arguments = (stage, maps) if self.is_cascade else (maps,)
            results = self.model.roi_head._bbox_forward(*arguments, torch.cat([image, boxes], 1))
            logits, deltas = results['cls_score'].float(), results['bbox_pred'].float()
            total = total + logits
            if stage < len(self.box_heads) - 1:
                scores = head.loss_cls.get_activation(logits) if head.custom_activation else logits
                boxes = head.regress_by_class(boxes, scores[:, :-1].argmax(1), deltas, dict(img_shape=size))
        scores = total / len(self.box_heads)
        scores = head.loss_cls.get_activation(scores) if head.custom_cls_channels else scores.softmax(-1)
        scores = scores[:, : head.num_classes].view(batch, count, -1)
        cfg = self.model.roi_head.test_cfg
        scores = torch.where(exists[..., None] & (scores > cfg.score_thr), scores, REMOVED).transpose(1, 2)  # (B, C, R)
        kinds = 1 if head.reg_class_agnostic else head.num_classes
        boxes = head.bbox_coder.decode(boxes.repeat_interleave(kinds, 0), deltas.view(-1, 4), max_shape=size)
        boxes = boxes.view(batch, count, kinds, 4).transpose(1, 2).expand(-1, head.num_classes, -1, -1)
        labels = torch.arange(head.num_classes, device=boxes.device).repeat_interleave(count)
        found = Found(boxes.flatten(1, 2), scores.flatten(1), labels.expand(batch, -1))
        return self.suppress(found, cfg.nms, cfg.max_per_img)

    def masks(self, maps: Sequence[Tensor], found: Found) -> Tensor:
        """Return the probabilities of the mask of each detection in its box, (B, K, P, P), the mean of all stages."""
        head, (batch, count) = self.model.roi_head, found.scores.shape
        (places,) = torch.nonzero(found.scores.flatten() > REMOVED, as_tuple=True)
        rois = torch.cat([(places // count)[:, None].float(), found.boxes.flatten(0, 1)[places]], 1)  # (M, 5)
        # one more, so that no layer sees an empty batch
        rois, labels, total = F.pad(rois, (0, 0, 0, 1)), F.pad(found.labels.flatten()[places], (0, 1)), 0
        mask_heads = list(head.mask_head) if self.is_cascade else [head.mask_head]
        for stage, mask_head in enumerate(mask_heads):
            arguments = (stage, maps) if self.is_cascade else (maps,)
            masks = head._mask_forward(*arguments, rois)['mask_preds'].float().sigmoid()  # (M + 1, C, P, P)
            if mask_head.class_agnostic:
                masks = masks[:, 0]
            else:
                masks = masks.gather(1, labels[:, None, None, None].expand(-1, -1, *masks.shape[2:]))[:, 0]
            total = total + masks
        result = found.boxes.new_zeros(batch * count, *masks.shape[1:])
        return result.index_copy(0, places, total[:-1] / len(mask_heads)).view(batch, count, *masks.shape[1:])


class QueryGraph(DetectorGraph):
    """DINO and other Deformable DETRs, which need no NMS; one image of a fixed size, both sides multiples of 32.

    MMDetection's transformer builds its reference points from the sizes of maps, value by value, which only torch's
    older tracer can record, for the sizes that it sees.
    """

    any_size, traced = False, True
    smallest = 64

    @property
    def facts(self) -> dict[str, Any]:
        return dict(nms='not needed')

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        from mmdet.structures import DetDataSample

        height, width = (int(side) for side in images.shape[2:])
        size = (height, width)
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)))
        inputs = self.model.forward_transformer(self.model.extract_feat(images), [sample])
        (found,) = self.model.bbox_head.predict(**inputs, rescale=False, batch_data_samples=[sample])
        scores, places = found.scores.float().sort(descending=True)
        return found.bboxes.float()[places][None], scores[None], found.labels[places][None]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample probabilities on a grid in each box at every pixel of the image, bilinearly, with zeros outside.

    Args:
        masks (Tensor): Probabilities in the boxes, (B, K, P, P).
        boxes (Tensor): Corners in pixels, (B, K, 4).
        size (tuple[int, int]): Height H and width W of the image.

    Returns:
        Tensor: Probabilities, (B, K, H, W).
    """
    axes = []
    for axis, length in ((0, size[1]), (1, size[0])):
        start, end = boxes[..., axis].flatten()[:, None], boxes[..., axis + 2].flatten()[:, None]
        pixels = torch.arange(length, device=boxes.device) + 0.5
        axes.append((pixels - start) / (end - start).clamp(min=1e-6) * 2 - 1)  # (B * K, length)
    x, y = axes[0][:, None, :], axes[1][:, :, None]
    grid = torch.stack([x.expand(-1, y.shape[1], -1), y.expand(-1, -1, x.shape[2])], -1)
    pasted = F.grid_sample(masks.flatten(0, 1)[:, None], grid.clamp(-3, 3), align_corners=False)
    return pasted.view(*boxes.shape[:2], *pasted.shape[2:])


def detector_kind(model: nn.Module) -> type[DetectorGraph]:
    """Return the graph that computes a detector.

    Raises:
        ValueError: If it predicts in a way of its own, or with an NMS that graphs do not have.
    """
    from mmdet.models import DDQDETR, DeformableDETR
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    if isinstance(model, DeformableDETR) and not isinstance(model, DDQDETR):
        return QueryGraph
    roi_head = getattr(model, 'roi_head', None)
    dense = model.rpn_head if roi_head is not None else getattr(model, 'bbox_head', None)
    expected: Any = RPNHead if roi_head is not None else BaseDenseHead
    known = isinstance(dense, expected) and all(
        getattr(type(dense), name) is getattr(expected, name)
        for name in ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    )
    if roi_head is not None:
        kinds = (StandardRoIHead, CascadeRoIHead)
        known = known and any(
            isinstance(roi_head, kind)
            and all(getattr(type(roi_head), name) is getattr(kind, name) for name in ('_bbox_forward', 'predict_bbox'))
            for kind in kinds
        )
    if not known:
        heads = ' and '.join(type(each).__name__ for each in (dense, roi_head) if each is not None)
        raise UserError(
            f'{type(model).__name__} with {heads or "no dense head"} is not exported whole, since it predicts in a way '
            'of its own: add --part backbone to export its backbone, without neck, heads and boxes'
        )
    check_nms(model, (roi_head or dense).test_cfg.nms)
    return TwoStageGraph if roi_head is not None else OneStageGraph


def check_nms(model: nn.Module, nms: Any) -> None:
    """Raise ``ValueError`` if a graph does not have this NMS."""
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr', 'sigma', 'min_score', 'method'}
    if nms.get('type', 'nms') not in ('nms', 'soft_nms') or set(nms) - known:
        raise UserError(
            f'nms={dict(nms)} in test_cfg of {type(model).__name__} is not exported: use nms or soft_nms, with the '
            'keys ' + ', '.join(sorted(known))
        )
