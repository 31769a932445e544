"""Evaluation of frozen features for dense prediction: a linear segmentation head on label PNGs, during pretraining.

The head is a batch norm and a 1x1 convolution, as in the papers of the DINO family, on the backbone's maps resized to
the finest of them and concatenated. The backbone runs once per image; only the head is trained, by AdamW.
"""

import os
from collections.abc import Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..datasets.formats import read_label_png
from ..datasets.image_files import list_images, read_rgb
from ..engine.model_state import evaluating
from ..models.execution import CELL
from ..utils.errors import MissingFileError, UserError
from .probe import FrozenFeaturesHook
from .sampler import seeded

IGNORED = 255
PARTS = ('train', 'val')


def list_labelled(data_root: str, image_dir: str, label_dir: str) -> dict[str, list[tuple[str, str]]]:
    """Return pairs of image and label file for ``train`` and ``val``, in order of name.

    Args:
        data_root (str): Folder with ``image_dir/train`` and ``image_dir/val``, and PNGs of the same names below
            ``label_dir``.
        image_dir (str): Folder of the images in it.
        label_dir (str): Folder of the labels in it.

    Raises:
        FileNotFoundError: If a folder or a label file does not exist.
    """
    found = {}
    for part in PARTS:
        folder, labels = (os.path.join(data_root, one, part) for one in (image_dir, label_dir))
        for one in (folder, labels):
            if not os.path.isdir(one):
                raise MissingFileError(
                    f'{one} of DenseProbeHook does not exist: expected {image_dir} and {label_dir} in {data_root}, '
                    'each with train and val, as tools/prepare.py --task segment writes them'
                )
        pairs = []
        for image in list_images([folder]):
            label = os.path.join(labels, os.path.splitext(os.path.relpath(image, folder))[0] + '.png')
            if not os.path.isfile(label):
                raise MissingFileError(f'{image} has no label: {label} does not exist')
            pairs.append((image, label))
        found[part] = pairs
    return found


def read_labels(path: str, side: int) -> Tensor:
    """Return the indices of a grey or palette PNG, resized to a square by nearest neighbours: uint8, (side, side).

    Raises:
        ValueError: If the file holds colours, indices above 255, or no image.
    """
    try:
        labels = read_label_png(path)
    except OSError as error:
        raise UserError(f'{path} cannot be read as an image: replace it, or remove it from the data') from error
    if labels.ndim != 2 or labels.max() > IGNORED:
        raise UserError(f'{path} is not a label image: expected a PNG of one channel with an index up to 255 per pixel')
    small = cv2.resize(labels.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(small)


@contextmanager
def _returning(backbone: nn.Module, stages: Sequence[int]):
    """Let a backbone return the maps of some stages, without output norms."""
    before = backbone.out_indices, backbone.out_norm
    backbone.out_indices, backbone.out_norm = tuple(stages), False
    try:
        yield
    finally:
        backbone.out_indices, backbone.out_norm = before


def dense_features(model: nn.Module, images: Tensor, stages: Sequence[int]) -> Tensor:
    """Return the maps of some stages, resized to the finest and concatenated: (B, C, h, w), float16.

    Args:
        model (nn.Module): ``FCMAE``, not wrapped for distributed training.
        images (Tensor): RGB images, uint8 (B, 3, H, W), on the CPU.
        stages (Sequence[int]): Stages, ascending, in [0, 3].
    """
    batch = dict(inputs=images.flip(1))  # preprocessors expect mmcv's order, BGR
    with evaluating(model), _returning(model.backbone, stages):
        inputs = model.data_preprocessor(batch, False)['inputs']
        maps = model.backbone(inputs)
    finest = maps[0].shape[-2:]
    resized = [F.interpolate(one.float(), finest, mode='bilinear', align_corners=False) for one in maps]
    return torch.cat(resized, 1).half().cpu()


def mean_iou(matrix: Tensor) -> float:
    """Return the mean IoU in percent over the classes that occur in the labels.

    Args:
        matrix (Tensor): Pixels by true class and predicted class, (K, K).
    """
    both, union = matrix.diag().double(), (matrix.sum(0) + matrix.sum(1) - matrix.diag()).double()
    occurs = matrix.sum(1) > 0
    return float((both[occurs] / union[occurs]).mean() * 100)


@HOOKS.register_module()
class DenseProbeHook(FrozenFeaturesHook):
    """Evaluate frozen features by a linear segmentation head every few epochs, and after the last.

    ``dense_mIoU``, in percent, is written to the log, the message hub and all visualizer backends. Training is bit for
    bit the same as without the hook. Images and labels are resized to squares, so the score compares models, not with
    other evaluations. Add it to a config's ``custom_hooks``::

        custom_hooks = [dict(type='DenseProbeHook', data_root='data/street', interval=20)]

    Args:
        data_root (str): Folder with ``images`` and ``labels``, each with ``train`` and ``val``; see
            :func:`list_labelled`.
        interval (int): Epochs between evaluations. Defaults to 10.
        image_dir (str): Folder of the images in it. Defaults to ``'images'``.
        label_dir (str): Folder of the label PNGs in it. Defaults to ``'labels'``.
        num_classes (int, optional): Classes; higher labels are ignored, as 255 is. Defaults to None, the highest label
            of the training images and 1.
        image_size (int): Side of the square images in pixels, a multiple of 32. Defaults to 256.
        stages (Sequence[int]): Stages whose maps the head reads. Defaults to (1, 2, 3), strides 8 to 32.
        epochs (int): Epochs of the head's training. Defaults to 20.
        lr (float): Its learning rate, which falls to 0 by a cosine. Defaults to 5e-3.
        batch_size (int): Images per batch. Defaults to 16.
        max_images (int): Most images of each part, taken at even steps. Defaults to 500.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        data_root: str,
        interval: int = 10,
        image_dir: str = 'images',
        label_dir: str = 'labels',
        num_classes: int | None = None,
        image_size: int = 256,
        stages: Sequence[int] = (1, 2, 3),
        epochs: int = 20,
        lr: float = 5e-3,
        batch_size: int = 16,
        max_images: int = 500,
    ) -> None:
        super().__init__(interval, epochs=epochs, lr=lr, batch_size=batch_size, max_images=max_images)
        if image_size < CELL or image_size % CELL:
            raise UserError(f'image_size={image_size} of DenseProbeHook: expected a multiple of {CELL}')
        if not stages or sorted({*stages} & {0, 1, 2, 3}) != list(stages):
            raise UserError(f'stages={stages} of DenseProbeHook: expected ascending stages in 0 to 3')
        self.data_root, self.folders = data_root, (image_dir, label_dir)
        self.num_classes, self.image_size, self.stages = num_classes, image_size, tuple(stages)
        self.epochs, self.lr, self.batch_size, self.max_images = epochs, lr, batch_size, max_images

    def read_data(self) -> None:
        """List files and read labels.

        Raises:
            FileNotFoundError: If a folder or a label file does not exist.
            ValueError: If a label file is not one, or there are fewer than two classes.
        """
        self._files, self._labels = {}, {}
        for part, pairs in list_labelled(self.data_root, *self.folders).items():
            step = -(-len(pairs) // self.max_images)
            self._files[part] = [image for image, _ in pairs[::step]]
            self._labels[part] = torch.stack([read_labels(label, self.image_size) for _, label in pairs[::step]])
        known = self._labels['train'][self._labels['train'] != IGNORED]
        if self.num_classes is None:
            self.num_classes = int(known.max()) + 1 if known.numel() else 0
        for labels in self._labels.values():
            labels[labels >= self.num_classes] = IGNORED
        if self.num_classes < 2 or (self._labels['train'] == IGNORED).all():
            raise UserError(
                f'{self.data_root} of DenseProbeHook has labels of {self.num_classes} classes: expected two or more'
            )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return ``dense_mIoU`` of a linear head on the frozen features of an ``FCMAE``, in percent."""
        device = next(model.parameters()).device
        with seeded(0):
            train, val = (self._features(model, part) for part in PARTS)
            head = self._fit(train, self._labels['train'], device)
            matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)
            for features, labels in zip(val.split(self.batch_size), self._labels['val'].split(self.batch_size)):
                with torch.no_grad():
                    logits = head(features.to(device).float())
                    logits = F.interpolate(logits, labels.shape[-2:], mode='bilinear', align_corners=False)
                counted = labels != IGNORED
                pairs = labels[counted].long() * self.num_classes + logits.argmax(1).cpu()[counted]
                matrix += pairs.bincount(minlength=self.num_classes**2).view_as(matrix)
        return dict(dense_mIoU=mean_iou(matrix))

    def _features(self, model: nn.Module, part: str) -> Tensor:
        side, found = (self.image_size, self.image_size), []
        for start in range(0, len(self._files[part]), self.batch_size):
            images = [
                cv2.resize(read_rgb(path), side, interpolation=cv2.INTER_AREA)
                for path in self._files[part][start : start + self.batch_size]
            ]
            found.append(dense_features(model, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self.stages))
        return torch.cat(found)

    @torch.enable_grad()
    def _fit(self, features: Tensor, labels: Tensor, device: torch.device) -> nn.Module:
        """Train a head on features (N, C, h, w) and labels (N, H, W), which are taken at the sites of the map."""
        labels = F.interpolate(labels[:, None].float(), features.shape[-2:], mode='nearest-exact')[:, 0].long()
        head = nn.Sequential(nn.BatchNorm2d(features.shape[1]), nn.Conv2d(features.shape[1], self.num_classes, 1))
        head.to(device).train()
        optimizer = torch.optim.AdamW(head.parameters(), self.lr, weight_decay=1e-4)
        batches = -(-len(features) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * batches)
        for _ in range(self.epochs):
            for chosen in torch.randperm(len(features)).split(self.batch_size):
                logits = head(features[chosen].to(device).float())
                target = labels[chosen].to(device)
                if (target != IGNORED).any():
                    optimizer.zero_grad()
                    F.cross_entropy(logits, target, ignore_index=IGNORED).backward()
                    optimizer.step()
                schedule.step()
        return head.eval()
