"""Evaluation of frozen features during FCMAE pretraining, by a k-nearest-neighbour vote and a linear probe.

The vote is that of instance discrimination (arXiv 1805.01978, section 3.4): neighbours by cosine similarity, weighted
by exp(cosine / temperature). The linear probe is a regularised logistic regression on standardised features. It is
solved to its optimum, instead of trained for epochs with augmentation, so its score does not depend on a learning rate.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from mmengine.dist import all_gather, get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.datasets import CustomDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..datasets.image_files import EXTENSIONS
from ..engine.model_state import evaluating, unwrapped
from ..utils.errors import MissingFileError, UserError
from .sampler import seeded

Labelled = tuple[Dataset, Tensor]  # images and their classes, long (N, )


def default_pipeline(image_size: int) -> list[dict]:
    """Return the usual evaluation pipeline: resize the short side to 256 / 224 of the crop, then crop the centre."""
    return [
        dict(type='LoadImageFromFile'),
        dict(
            type='ResizeEdge',
            scale=round(image_size * 256 / 224),
            edge='short',
            backend='pillow',
            interpolation='bicubic',
        ),
        dict(type='CenterCrop', crop_size=image_size),
        dict(type='PackInputs'),
    ]


def labelled_split(data_root: str, pipeline: Sequence[dict], val_share: float = 0.2) -> tuple[Labelled, Labelled, int]:
    """Read a labelled folder with one folder per class, and split it into training and test images.

    If ``data_root`` has folders ``train`` and ``val``, they are the split. Otherwise, of each class's files in order of
    name, test images are taken at even steps, so the split is the same in every run.

    Args:
        data_root (str): Folder of labelled images.
        pipeline (Sequence[dict]): Transforms.
        val_share (float): Share of test images if the folder is split here, in (0, 1). Defaults to 0.2.

    Returns:
        tuple: Training images and their classes, test images and their classes, number of classes.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a part is empty, there are fewer than two classes, or the parts have different classes.
    """
    if not os.path.isdir(data_root):
        raise MissingFileError(f'data_root={data_root!r} of ProbeHook does not exist')
    parts = [part for part in ('train', 'val') if os.path.isdir(os.path.join(data_root, part))]
    if len(parts) == 1:
        raise UserError(
            f'data_root={data_root!r} of ProbeHook has only a folder {parts[0]!r}: give train and val, '
            'or one folder per class'
        )
    if parts:
        sets = [_read(os.path.join(data_root, part), pipeline) for part in parts]
        labels = [_labels(one) for one in sets]
    else:
        whole = _read(data_root, pipeline)
        indices = _even_split(_labels(whole), val_share)
        sets = [Subset(whole, index) for index in indices]
        labels = [_labels(whole)[index] for index in indices]
    classes = [_classes(one) for one in sets]
    if classes[0] != classes[1] or len(classes[0]) < 2 or not all(map(len, labels)):
        raise UserError(
            f'{data_root} has {len(labels[0])} images of the classes {classes[0]} to learn from and '
            f'{len(labels[1])} of {classes[1]} to test on: expected images of the same classes, two '
            'or more, in both'
        )
    return (sets[0], labels[0]), (sets[1], labels[1]), len(classes[0])


def _read(folder: str, pipeline: Sequence[dict]) -> CustomDataset:
    return CustomDataset(data_root=folder, pipeline=list(pipeline), extensions=EXTENSIONS + ('.npy',))


def _labels(dataset: CustomDataset) -> Tensor:
    return torch.from_numpy(np.asarray(dataset.get_gt_labels(), dtype=np.int64))


def _classes(dataset: Dataset) -> Sequence[str]:
    return (dataset.dataset if isinstance(dataset, Subset) else dataset).CLASSES


def _even_split(labels: Tensor, share: float) -> tuple[list[int], list[int]]:
    """Return indices outside and inside a share of each class, where the share is taken at even steps."""
    parts: tuple[list[int], list[int]] = ([], [])
    for label in labels.unique().tolist():
        for place, index in enumerate((labels == label).nonzero()[:, 0].tolist()):
            parts[math.floor((place + 1) * share + 1e-9) > math.floor(place * share + 1e-9)].append(index)
    return sorted(parts[0]), sorted(parts[1])


def pooled_features(model: nn.Module, dataset: Dataset, batch_size: int = 64, num_workers: int = 0) -> Tensor:
    """Return the mean over sites of the dense backbone's last map: float32, (N, C), in the order of the data set.

    In a distributed run the images are divided among the processes. All processes run the same number of forwards, and
    all get the complete result.

    Args:
        model (nn.Module): ``FCMAE`` model, not wrapped for distributed training.
        dataset (Dataset): Data set of N images.
        batch_size (int): Images per batch and process. Defaults to 64.
        num_workers (int): Number of data loader workers. Defaults to 0.
    """
    rank, world_size = get_dist_info()
    share = -(-len(dataset) // world_size)
    indices = np.resize(np.arange(len(dataset)), share * world_size)[rank::world_size].tolist()
    loader = DataLoader(Subset(dataset, indices), batch_size, num_workers=num_workers, collate_fn=default_collate)
    pooled = []
    with evaluating(model), seeded(0):
        for batch in loader:
            inputs = model.data_preprocessor(batch, False)['inputs']
            pooled.append(model(inputs, mode='tensor')[-1].float().mean((2, 3)))  # (B, C)
    parts = all_gather(torch.cat(pooled))
    return torch.stack(parts, dim=1).flatten(0, 1)[: len(dataset)]  # image j * world_size + rank is rank's j-th


def knn_vote(features: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> Tensor:
    """Return the class of each query by a weighted vote of its nearest neighbours: long, (Q, ).

    Args:
        features (Tensor): Features of labelled images, (N, C).
        labels (Tensor): Their classes, long, (N, ).
        queries (Tensor): Features to classify, (Q, C).
        k (int): Number of neighbours, at most N.
        temperature (float): Temperature of the vote: a neighbour with cosine c has the weight exp(c / temperature).
    """
    features, queries, votes = F.normalize(features), F.normalize(queries), []
    for chunk in queries.split(1024):
        cosine, index = (chunk @ features.T).topk(k)  # (q, k)
        weight = ((cosine - 1) / temperature).exp()  # a common factor exp(-1 / temperature) prevents overflow
        ballot = weight.new_zeros(len(chunk), int(labels.max()) + 1)
        votes.append(ballot.scatter_add(1, labels[index], weight).argmax(1))
    return torch.cat(votes)


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by L-BFGS from zero, without randomness.

    It minimises the mean cross-entropy plus ``penalty / 2 * |weight|^2``.

    Args:
        features (Tensor): Features (N, C), in float64 for full convergence.
        labels (Tensor): Classes, long, (N, ).
        num_classes (int): Number of classes.
        penalty (float): Factor of the penalty, positive.

    Returns:
        tuple[Tensor, Tensor]: Weight (num_classes, C) and bias (num_classes, ).
    """
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn='strong_wolfe'
    )

    @torch.enable_grad()
    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def linear_vote(features: Tensor, labels: Tensor, queries: Tensor, num_classes: int, penalty: float) -> Tensor:
    """Return the class of each query (Q, C) by a linear probe fitted to features (N, C).

    Both are standardised by the mean and deviation of the features.
    """
    deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
    features, queries = ((one.double() - mean) / (deviation + 1e-6) for one in (features, queries))
    weight, bias = fit_linear(features, labels, num_classes, penalty)
    return F.linear(queries, weight, bias).argmax(1)


class FrozenFeaturesHook(Hook):
    """Base of hooks that evaluate frozen features every ``interval`` epochs, and after the last.

    Scores are written to the log, the message hub and all visualizer backends.

    Args:
        interval (int): Epochs between evaluations.
        positive (dict): Other arguments by name that must be more than 0.

    Raises:
        ValueError: If a number is not.
    """

    def __init__(self, interval: int, **positive: float) -> None:
        for name, value in dict(interval=interval, **positive).items():
            if value <= 0:
                raise UserError(f'{name}={value} of {type(self).__name__}: expected more than 0')
        self.interval = interval

    def read_data(self) -> None:
        """Read what the features are evaluated on."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return scores of an ``FCMAE``, in percent, by name."""
        raise NotImplementedError

    def before_train(self, runner) -> None:
        """Read the data, so mistakes are found before training starts."""
        self.read_data()

    def after_train_epoch(self, runner) -> None:
        """Evaluate every ``interval`` epochs, and after the last epoch."""
        if not self.every_n_epochs(runner, self.interval) and runner.epoch + 1 != runner.max_epochs:
            return
        scores = self.evaluate(unwrapped(runner.model))
        for name, score in scores.items():
            runner.message_hub.update_scalar(name, score)
        runner.visualizer.add_scalars(scores, step=runner.epoch + 1)
        text = ', '.join(f'{name} {score:.2f}' for name, score in scores.items())
        runner.logger.info(f'frozen features after epoch {runner.epoch + 1}: {text}')


@HOOKS.register_module()
class ProbeHook(FrozenFeaturesHook):
    """Evaluate frozen, globally averaged features on a labelled folder every few epochs, and after the last.

    ``knn_top1`` and ``linear_top1``, in percent, are written to the log, the message hub and all visualizer backends.
    Training is bit for bit the same as without the hook. Add it to a config's ``custom_hooks``::

        custom_hooks = [dict(type='ProbeHook', data_root='data/labelled', interval=20)]

    Args:
        data_root (str): Folder with one folder per class, or with folders ``train`` and ``val`` that have them; see
            :func:`labelled_split`.
        interval (int): Epochs between evaluations. Defaults to 10.
        k (int): Number of neighbours. Defaults to 20.
        temperature (float): Temperature of the neighbours' vote. Defaults to 0.07.
        linear (bool): Whether to fit the linear probe. Defaults to True.
        penalty (float): Penalty on the linear probe's weight, see :func:`fit_linear`. Defaults to 1e-3.
        val_share (float): Share of test images if the folder is not split. Defaults to 0.2.
        image_size (int): Side of the square crop in pixels, 32 or more. Defaults to 224.
        pipeline (Sequence[dict], optional): Transforms, with ``PackInputs`` last, for images with other channels.
            Defaults to None, :func:`default_pipeline`.
        batch_size (int): Images per batch and process. Defaults to 64.
        num_workers (int): Number of data loader workers. Defaults to 0.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        data_root: str,
        interval: int = 10,
        k: int = 20,
        temperature: float = 0.07,
        linear: bool = True,
        penalty: float = 1e-3,
        val_share: float = 0.2,
        image_size: int = 224,
        pipeline: Sequence[dict] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(interval, k=k, batch_size=batch_size, temperature=temperature, penalty=penalty)
        if not 0 < val_share < 1:
            raise UserError(f'val_share={val_share} of ProbeHook: expected a share in (0, 1)')
        self.data_root = data_root
        self.k = k
        self.temperature = temperature
        self.linear = linear
        self.penalty = penalty
        self.val_share = val_share
        self.pipeline = default_pipeline(image_size) if pipeline is None else pipeline
        self.loading = dict(batch_size=batch_size, num_workers=num_workers)

    def read_data(self) -> None:
        """Read the folder.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ValueError: If it cannot be split, or has fewer training images than ``k``.
        """
        self._train, self._test, self._num_classes = labelled_split(self.data_root, self.pipeline, self.val_share)
        if self.k > len(self._train[1]):
            raise UserError(
                f'k={self.k} of ProbeHook: {self.data_root} has {len(self._train[1])} images to learn '
                'from; choose at most as many neighbours'
            )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return ``knn_top1`` and ``linear_top1`` of an ``FCMAE``, in percent."""
        features, queries = (pooled_features(model, part[0], **self.loading) for part in (self._train, self._test))
        labels, truth = (part[1].to(features.device) for part in (self._train, self._test))
        votes = dict(knn_top1=knn_vote(features, labels, queries, self.k, self.temperature))
        if self.linear:
            votes['linear_top1'] = linear_vote(features, labels, queries, self._num_classes, self.penalty)
        return {name: (vote == truth).double().mean().item() * 100 for name, vote in votes.items()}
