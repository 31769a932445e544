"""MistakesHook: which images of a test went wrong, and how, worst first."""

import json
import os
from collections import Counter
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from ...utils.atomic import replacing

MISTAKES = 'mistakes.json'
LEAST_IOU = 0.5  # of a box that counts as found
MOST_CONFUSIONS = 3  # named per image


class Mistakes(NamedTuple):
    """What is wrong with one prediction.

    Attributes:
        error (float): 0 if nothing is, 1 if everything is.
        text (str): The mistakes in words.
    """

    error: float
    text: str


def detection_mistakes(
    boxes: Tensor, labels: Tensor, scores: Tensor, true_boxes: Tensor, true_labels: Tensor, classes: list[str]
) -> Mistakes:
    """Compare the objects found in an image with the true ones, of which each is found at most once.

    Args:
        boxes (Tensor): Boxes found, left, top, right and bottom in pixels (N, 4).
        labels (Tensor): Their classes, long (N, ).
        scores (Tensor): Their scores (N, ); objects of higher scores choose first.
        true_boxes (Tensor): True boxes (M, 4).
        true_labels (Tensor): Their classes, long (M, ).
        classes (list[str]): Class names.

    Returns:
        Mistakes: The error is the share of objects, found or true, that have no counterpart of their class with an
        IoU of at least 0.5.
    """
    from torchvision.ops import box_iou  # importing the package needs torch and mmengine only

    same = labels[:, None] == true_labels[None]
    overlaps = torch.where(same, box_iou(boxes, true_boxes), 0.0)  # (N, M)
    missed, extra = set(range(len(true_labels))), []
    for index in scores.argsort(descending=True).tolist():
        best = max(missed, key=lambda true: overlaps[index, true], default=None)
        if best is not None and overlaps[index, best] >= LEAST_IOU:
            missed.remove(best)
        else:
            extra.append(index)
    found = len(true_labels) - len(missed)
    parts = []
    for word, indices, source in (('missed', sorted(missed), true_labels), ('wrong', extra, labels)):
        counts = Counter(classes[int(source[index])] for index in indices)
        if counts:
            parts.append(f'{word}: ' + ', '.join(f'{count} {name}' for name, count in counts.most_common()))
    wrong = len(missed) + len(extra)
    text = '; '.join(parts) or 'all found' * bool(found) or 'nothing to find'
    return Mistakes(wrong / max(1, wrong + found), text)


def segmentation_mistakes(labels: Tensor, true_labels: Tensor, classes: list[str], ignored: int = 255) -> Mistakes:
    """Compare the labels of an image's pixels with the true ones.

    Args:
        labels (Tensor): Predicted classes (H, W).
        true_labels (Tensor): True classes (H, W).
        classes (list[str]): Class names.
        ignored (int): Label that is not evaluated. Defaults to 255.

    Returns:
        Mistakes: The error is one minus the mean IoU over the classes that occur in the true labels; the text names
        the largest confusions in percent of the evaluated pixels.
    """
    valid = true_labels != ignored
    count = len(classes)
    pairs = true_labels[valid].long() * count + labels[valid].long()
    confusion = pairs.bincount(minlength=count**2).view(count, count).double()  # (true, predicted)
    right, true, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = true > 0
    if not occurs.any():
        return Mistakes(0.0, 'nothing labelled')
    error = 1 - float((right / (true + found - right))[occurs].mean())
    shares = (confusion - confusion.diag().diag()) / confusion.sum() * 100
    order = shares.flatten().argsort(descending=True)[:MOST_CONFUSIONS].tolist()
    parts = [
        f'{classes[one // count]} as {classes[one % count]} {float(shares.flatten()[one]):.1f} %'
        for one in order
        if shares.flatten()[one] > 0
    ]
    return Mistakes(error, ', '.join(parts) or 'all right')


def classification_mistakes(scores: Tensor, true_label: int, classes: list[str] | None) -> Mistakes:
    """Compare the scores of an image's classes (K, ) with its class; the error is one minus the score of that class."""
    names = classes or [str(label) for label in range(len(scores))]
    label = int(scores.argmax())
    text = 'right' if label == true_label else f'{names[true_label]} as {names[label]}'
    return Mistakes(1 - float(scores[true_label]), f'{text}, score {float(scores[label]):.2f}')


def mistakes_of(sample: Any, classes: list[str] | None, score_threshold: float) -> Mistakes | None:
    """Compare a data sample's prediction with its ground truth; None if it lacks either."""
    if 'pred_instances' in sample and 'gt_instances' in sample:
        found = sample.pred_instances.cpu()
        found = found[found.scores >= score_threshold]
        true = sample.gt_instances.cpu()
        boxes = getattr(true.bboxes, 'tensor', true.bboxes)
        return detection_mistakes(found.bboxes, found.labels, found.scores, boxes, true.labels, classes)
    if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
        return segmentation_mistakes(sample.pred_sem_seg.data[0].cpu(), sample.gt_sem_seg.data[0].cpu(), classes)
    if 'pred_score' in sample and 'gt_label' in sample and sample.gt_label.numel() == 1:
        return classification_mistakes(sample.pred_score.cpu(), int(sample.gt_label), classes)
    return None


@HOOKS.register_module()
class MistakesHook(Hook):
    """Rank the images of a test by their mistakes, in ``OUT_DIR/mistakes.json``, which ``tools/report.py`` reads.

    Args:
        out_dir (str): Folder of the file.
        score_thr (float): Minimum score of a detected object, 0 to 1. Defaults to 0.3.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3) -> None:
        self.out_dir = out_dir
        self.score_thr = score_thr
        self._found: list[dict] = []

    def before_test(self, runner) -> None:
        """Forget an earlier test."""
        self._found = []

    def after_test_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Compare a batch of predictions."""
        meta = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None) or {}
        for sample in outputs or []:
            mistakes = mistakes_of(sample, meta.get('classes'), self.score_thr)
            if mistakes is not None:
                self._found.append(dict(file=sample.img_path, **mistakes._asdict()))

    def after_test(self, runner) -> None:
        """Write the file."""
        gathered = {one['file']: one for found in all_gather_object(self._found) for one in found}
        if is_main_process() and gathered:
            os.makedirs(self.out_dir, exist_ok=True)
            ranked = sorted(gathered.values(), key=lambda one: -one['error'])
            with replacing(os.path.join(self.out_dir, MISTAKES)) as partial, open(partial, 'w') as file:
                json.dump(ranked, file, indent=1)
