"""Images of a folder, with or without class labels, in the usual evaluation crop, for analyses."""

import os
import random
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from ..utils.errors import MissingFileError, UserError
from .image_files import list_images, read_rgb


class LabelledImages(Dataset):
    """RGB images, resized to a short side of 256 / 224 of ``size`` and centre-cropped.

    Args:
        files (Sequence[str]): Paths of the images.
        size (int): Side of the crop in pixels, a multiple of 32. Defaults to 224.
        labels (Sequence[int], optional): Class of each image. Defaults to None, all 0.

    Raises:
        ValueError: If ``size`` is not a multiple of 32.
    """

    def __init__(self, files: Sequence[str], size: int = 224, labels: Sequence[int] | None = None) -> None:
        if size <= 0 or size % 32:
            raise UserError(f'--size {size}: expected a positive multiple of 32')
        self.files = files
        self.labels = [0] * len(files) if labels is None else labels
        self.view = Compose(
            [Resize(round(size * 256 / 224), InterpolationMode.BICUBIC), CenterCrop(size), PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, uint8 (3, size, size), and its class.

        Raises:
            ValueError: If the file cannot be read.
        """
        path = self.files[index]
        return self.view(Image.fromarray(read_rgb(path))), self.labels[index]

    def batches(self, batch_size: int, num_workers: int = 0) -> DataLoader:
        """Return a loader of images, uint8 (B, 3, size, size), and classes, long (B, ), in order."""
        return DataLoader(self, batch_size, num_workers=num_workers)


def choose_images(paths: Sequence[str], num_images: int, seed: int = 0) -> list[str]:
    """Sample ``num_images`` of the images in files and folders without replacement; return all if there are fewer."""
    files = list_images(paths)
    if num_images >= len(files):
        return files
    return sorted(random.Random(seed).sample(files, num_images))


def choose_labelled(folder: str, per_class: int | None = None, seed: int = 0) -> tuple[list[str], list[int], list[str]]:
    """List the images and labels of a folder with one folder per class.

    Args:
        folder (str): Folder that contains the class folders.
        per_class (int, optional): Maximum number of images to sample per class. Defaults to None, all.
        seed (int): Seed of the sampling. Defaults to 0.

    Returns:
        tuple: Files, the label of each file, and the names of the classes.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there are fewer than two classes, or one has no image.
    """
    if not os.path.isdir(folder):
        raise MissingFileError(f'{folder} is not a folder')
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    if len(classes) < 2:
        raise UserError(f'{folder} contains {len(classes)} folders: expected one folder per class, at least two')
    files, labels = [], []
    for label, name in enumerate(classes):
        path = os.path.join(folder, name)
        chosen = list_images([path]) if per_class is None else choose_images([path], per_class, seed)
        files += chosen
        labels += [label] * len(chosen)
    return files, labels, classes


def load_batch(files: Sequence[str], size: int) -> Tensor:
    """Load images into one batch, uint8 (B, 3, size, size)."""
    dataset = LabelledImages(files, size)
    return torch.stack([dataset[index][0] for index in range(len(dataset))])
