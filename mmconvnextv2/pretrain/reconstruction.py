"""Reconstruction images during pretraining."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..engine.model_state import evaluating, unwrapped
from .masking import stack_visible_cells

COLUMNS = ('original', 'masked', 'reconstruction', 'pasted')


def image_grid(reconstructed: dict, mean: Tensor | None = None, std: Tensor | None = None) -> np.ndarray:
    """Lay ``FCMAE.reconstruct``'s images out as one RGB image, a row an image and the columns of ``COLUMNS``.

    Images with other than three channels show their first channel.

    Args:
        images (dict[str, Tensor]): Each (B, C, H, W).
        mean (Tensor, optional): Broadcastable to (C, 1, 1), what the preprocessor subtracted. Defaults to None.
        std (Tensor, optional): What it divided by. Defaults to None.

    Returns:
        np.ndarray: uint8, (B * H, 4 * W, 3).
    """
    columns = []
    for name in COLUMNS:
        pixels = reconstructed[name].float()
        if std is not None:
            pixels = pixels * std + mean
        if pixels.shape[1] != 3:
            pixels = pixels[:, :1].expand(-1, 3, -1, -1)
        columns.append(torch.cat(tuple(pixels), dim=1))  # (3, B * H, W)
    grid = torch.cat(columns, dim=2).permute(1, 2, 0)
    return grid.round().clamp(0, 255).byte().cpu().numpy()


def render_reconstructions(model: nn.Module, batch: dict) -> np.ndarray:
    """Return the image grid of a batch as the data loader gives it (``inputs``, ``data_samples``)."""
    preprocessor = model.data_preprocessor
    data = preprocessor(dict(batch), False)
    cells = stack_visible_cells(data['data_samples'], data['inputs'].device)
    with evaluating(model):
        reconstructed = model.reconstruct(data['inputs'], cells)
    return image_grid(reconstructed, getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None))


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Write original | masked | reconstruction | pasted of the first training images to every visualizer backend.

    Args:
        interval (int): Epochs between images. Defaults to 1.
        num_images (int): Rows. Defaults to 4.
    """

    def __init__(self, interval: int = 1, num_images: int = 4) -> None:
        self.interval = interval
        self.num_images = num_images
        self._batch = None

    def before_train(self, runner) -> None:
        """Take the same images, with the same masks, for the whole run."""
        dataset = runner.train_dataloader.dataset
        samples: Sequence[dict] = [dataset[index] for index in range(min(self.num_images, len(dataset)))]
        self._batch = dict(
            inputs=torch.stack([sample['inputs'] for sample in samples]),
            data_samples=[sample['data_samples'] for sample in samples],
        )

    def after_train_epoch(self, runner) -> None:
        """Draw when the interval has passed, and after the last epoch."""
        if self.every_n_epochs(runner, self.interval) or runner.epoch + 1 == runner.max_epochs:
            image = render_reconstructions(unwrapped(runner.model), self._batch)
            runner.visualizer.add_image('reconstruction', image, step=runner.epoch + 1)
