"""Visualisation of reconstructions during pretraining."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..engine.model_state import evaluating, unwrapped
from .masking import stack_visible_cells

COLUMNS = ('original', 'masked', 'reconstruction', 'pasted', 'unaided')


def image_grid(
    reconstructed: dict, mean: Tensor | None = None, std: Tensor | None = None, channels: Sequence[int] | None = None
) -> np.ndarray:
    """Arrange the images of ``FCMAE.reconstruct`` in one RGB image with a row per image and the columns of ``COLUMNS``.

    If values of the original images exceed 0 to 255 by more than half of it, as those of 16 bits do, all are stretched:
    the originals' 2nd percentile becomes black, the 98th white.

    Args:
        reconstructed (dict[str, Tensor]): Images of shape (B, C, H, W) for each name in ``COLUMNS``.
        mean (Tensor, optional): Mean that the preprocessor subtracted, broadcastable to (C, 1, 1). Defaults to None.
        std (Tensor, optional): Standard deviation that it divided by. Defaults to None.
        channels (Sequence[int], optional): Three channels to show as red, green and blue, or one as grey. Defaults to
            None: all of three channels, otherwise the first.

    Returns:
        np.ndarray: Image of shape (B * H, 5 * W, 3), uint8.
    """
    columns, (low, high) = [], (0.0, 255.0)
    for name in COLUMNS:
        pixels = reconstructed[name].float()
        if std is not None:
            pixels = pixels * std + mean
        if channels is not None or pixels.shape[1] != 3:
            pixels = pixels[:, list(channels or (0,))].expand(-1, 3, -1, -1)
        if name == 'original' and (pixels.min() < -128 or pixels.max() > 383):
            low, high = np.percentile(pixels.cpu().numpy(), (2, 98))
        pixels = (pixels - low) * (255 / max(high - low, 1e-6)) if (low, high) != (0, 255) else pixels
        columns.append(torch.cat(tuple(pixels), dim=1))  # (3, B * H, W)
    grid = torch.cat(columns, dim=2).permute(1, 2, 0)
    return grid.round().clamp(0, 255).byte().cpu().numpy()


def render_reconstructions(model: nn.Module, batch: dict, channels: Sequence[int] | None = None) -> np.ndarray:
    """Return the image grid of a batch of the data loader (``inputs``, ``data_samples``), see :func:`image_grid`."""
    preprocessor = model.data_preprocessor
    data = preprocessor(dict(batch), False)
    cells = stack_visible_cells(data['data_samples'], data['inputs'].device)
    with evaluating(model):
        reconstructed = model.reconstruct(data['inputs'], cells)
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return image_grid(reconstructed, mean, std, channels)


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Write the columns of ``COLUMNS`` for the first training images to all visualizer backends.

    Args:
        interval (int): Epochs between visualisations. Defaults to 1.
        num_images (int): Number of images, one per row. Defaults to 4.
        channels (Sequence[int], optional): Three channels to show as red, green and blue, or one as grey. Defaults to
            None: all of three channels, otherwise the first.
    """

    def __init__(self, interval: int = 1, num_images: int = 4, channels: Sequence[int] | None = None) -> None:
        self.interval = interval
        self.num_images = num_images
        self.channels = channels
        self._batch = None

    def before_train(self, runner) -> None:
        """Load the images and masks, which stay the same for the whole run."""
        dataset = runner.train_dataloader.dataset
        samples: Sequence[dict] = [dataset[index] for index in range(min(self.num_images, len(dataset)))]
        self._batch = dict(
            inputs=torch.stack([sample['inputs'] for sample in samples]),
            data_samples=[sample['data_samples'] for sample in samples],
        )

    def after_train_epoch(self, runner) -> None:
        """Write the image every ``interval`` epochs, and after the last epoch."""
        if self.every_n_epochs(runner, self.interval) or runner.epoch + 1 == runner.max_epochs:
            image = render_reconstructions(unwrapped(runner.model), self._batch, self.channels)
            runner.visualizer.add_image('reconstruction', image, step=runner.epoch + 1)
