"""MistakesHook: which images of a test went wrong, and how, worst first."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
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


def detection_mistakes(found: Any, true: Any, ignored: Any, classes: Sequence[str]) -> Mistakes:
    """Compare the objects found in an image with the true ones, as MMDetection's VOC metric matches them.

    Args:
        found (InstanceData): Objects found, with bboxes (N, 4) in pixels, labels and scores (N, ), on the CPU.
        true (InstanceData): True objects, with bboxes and labels.
        ignored (InstanceData, optional): Crowds, with bboxes and labels; finding one counts neither way.
        classes (Sequence[str]): Class names.

    Returns:
        Mistakes: The error is the share of objects, found or true, that have no counterpart of their class with an
        IoU of at least 0.5.
    """
    match = import_module('mmdet.evaluation.functional.mean_ap').tpfp_default
    missed, wrong, right = Counter(), Counter(), 0
    for label in sorted({*found.labels.tolist(), *true.labels.tolist()}):
        mine = found[found.labels == label]
        scored = torch.cat([mine.bboxes, mine.scores[:, None]], 1).numpy()
        boxes, crowds = _boxes_of(true, label), _boxes_of(ignored, label)
        hits, misses = match(scored, boxes, crowds, LEAST_IOU)
        missed[classes[label]] = int(len(boxes) - hits.sum())
        wrong[classes[label]] = int(misses.sum())
        right += int(hits.sum())
    parts = [f'missed: {_listed(missed)}' * bool(+missed), f'wrong: {_listed(wrong)}' * bool(+wrong)]
    mistakes = missed.total() + wrong.total()
    text = '; '.join(filter(None, parts)) or ('all found' if right else 'nothing to find')
    return Mistakes(mistakes / max(1, mistakes + right), text)


def _boxes_of(instances: Any, label: int) -> np.ndarray:
    """Return the boxes of a class (N, 4)."""
    if instances is None:
        return np.zeros((0, 4), np.float32)
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    return boxes[instances.labels == label].numpy()


def _listed(counts: Counter) -> str:
    return ', '.join(f'{count} {name}' for name, count in (+counts).most_common())


def segmentation_mistakes(labels: Tensor, true_labels: Tensor, classes: Sequence[str], ignored: int = 255) -> Mistakes:
    """Compare the labels of an image's pixels with the true ones.

    Args:
        labels (Tensor): Predicted classes (H, W).
        true_labels (Tensor): True classes (H, W).
        classes (Sequence[str]): Class names.
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
    shares = ((confusion - right.diag()) / confusion.sum() * 100).flatten()
    largest = shares.topk(min(MOST_CONFUSIONS, count**2))
    parts = [
        f'{classes[pair // count]} as {classes[pair % count]} {share:.1f} %'
        for share, pair in zip(largest.values.tolist(), largest.indices.tolist())
        if share > 0
    ]
    return Mistakes(error, ', '.join(parts) or 'all right')


def classification_mistakes(scores: Tensor, true_label: int, classes: Sequence[str] | None) -> Mistakes:
    """Compare the scores of an image's classes (K, ) with its class; the error is one minus the score of that class."""
    names = classes or [str(label) for label in range(len(scores))]
    label = int(scores.argmax())
    text = 'right' if label == true_label else f'{names[true_label]} as {names[label]}'
    return Mistakes(1 - float(scores[true_label]), f'{text}, score {float(scores[label]):.2f}')


def mistakes_of(sample: Any, classes: Sequence[str] | None, score_threshold: float) -> Mistakes | None:
    """Compare a data sample's prediction with its ground truth, or return None if it lacks either."""
    sample = sample.cpu()
    if 'pred_instances' in sample and 'gt_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= score_threshold]
        return detection_mistakes(found, sample.gt_instances, sample.get('ignored_instances'), classes)
    if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
        return segmentation_mistakes(sample.pred_sem_seg.data[0], sample.gt_sem_seg.data[0], classes)
    if 'pred_score' in sample and 'gt_label' in sample and sample.gt_label.numel() == 1:
        return classification_mistakes(sample.pred_score, int(sample.gt_label), classes)
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
