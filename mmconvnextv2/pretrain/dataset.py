"""Unlabelled images whose crop, flip and mask depend only on (seed, epoch, index).

Random states of workers and ranks are not used, so results do not depend on the number of workers or processes.
"""

import logging
from collections.abc import Sequence

import cv2
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from ..datasets import jpeg, resize
from ..datasets.image_files import EXTENSIONS
from ..datasets.packed_images import PackedImages, is_packed
from ..utils.errors import RunError, UserError
from .loading import LoadImageForCrop, LoadPackedImage, PackedList, is_plain
from .sampler import SampleKey, seeded


@DATASETS.register_module()
class UnlabelledImages(CustomDataset):
    """All images of a folder tree, or of a file of decoded images that ``tools/prepare.py --task pretrain`` wrote.

    A file that cannot be read is logged once per rank and replaced by the next image.

    Args:
        data_root (str): Folder of images, possibly nested and of mixed formats, or packed file.
        pipeline (Sequence): Transforms, with ``FCMAEMaskGenerator`` and ``PackInputs`` last. With a packed file,
            ``LoadPackedImage`` takes the place of the first one, ``LoadImageForCrop`` or ``LoadImageFromFile``.
        max_corrupt_share (float): Share of unreadable files, in [0, 1), above which the run stops; a single one is
            always tolerated. Defaults to 0.01.
        extensions (Sequence[str]): File extensions to read, case-insensitive; ``'.npy'`` needs
            ``LoadMultiChannelImage``. Defaults to the usual image formats.
        kwargs: Arguments of mmpretrain's ``CustomDataset``.

    Raises:
        RuntimeError: During training, if more files are unreadable than ``max_corrupt_share`` allows.
        ValueError: If ``data_root`` is a file of another kind, of another version or cut short, or the first transform
            cannot read images of a packed file.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: tuple = (),
        max_corrupt_share: float = 0.01,
        extensions: Sequence[str] = EXTENSIONS,
        **kwargs,
    ) -> None:
        if not 0 <= max_corrupt_share < 1:
            raise UserError(f'max_corrupt_share={max_corrupt_share}: expected a share in [0, 1)')
        self.max_corrupt_share = max_corrupt_share
        self.packed = PackedImages(data_root) if is_packed(data_root) else None
        if self.packed:
            kwargs.update(serialize_data=False)  # the list is a view of the file
        super().__init__(data_root=data_root, pipeline=pipeline, with_label=False, extensions=extensions, **kwargs)
        if self.packed:
            self.pipeline.transforms[:1] = [self._packed_loader()]

    def _packed_loader(self) -> LoadPackedImage:
        first = next(iter(self.pipeline.transforms), None)
        if type(first) not in (LoadImageFromFile, LoadImageForCrop) or not is_plain(first):
            raise UserError(
                f'{self.data_root} holds BGR images of 8 bits, but the pipeline begins with {first}: begin it with '
                "dict(type='LoadImageForCrop'), or set data_root to a folder of images"
            )
        return LoadPackedImage(self.packed)

    def load_data_list(self) -> Sequence[dict]:
        """List the files of the folder, or the images of the packed file."""
        return PackedList(self.packed) if self.packed else super().load_data_list()

    def full_init(self) -> None:
        """List the files, and allocate one "corrupt" flag per file, shared between workers."""
        if not self._fully_initialized:
            super().full_init()
            first = next(iter(self.pipeline.transforms), None)
            if isinstance(first, LoadImageForCrop) and not self.packed:
                print_log(f'JPEG: {jpeg.describe()}; crops resized by {resize.describe()}', 'current')
            self._corrupt = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def __getitem__(self, key: int | SampleKey) -> dict:
        key = key if isinstance(key, SampleKey) else SampleKey(0, 0, key)
        for step in range(len(self)):
            index = (key.index + step) % len(self)
            with seeded(*key):
                try:
                    return self.prepare_data(index)
                except (OSError, AssertionError, SyntaxError, cv2.error) as error:
                    self._note_corrupt(index, error)
        raise RunError(f'none of the {len(self)} images in {self.data_root!r} can be read')

    def _note_corrupt(self, index: int, error: Exception) -> None:
        """Log an unreadable file, and raise if there are too many."""
        if not self._corrupt[index]:
            self._corrupt[index] = True
            print_log(
                f'skipped {self.get_data_info(index)["img_path"]}: {type(error).__name__}: {error} '
                f'({int(self._corrupt.sum())} unreadable of {len(self)})',
                'current',
                logging.WARNING,
            )
        count = int(self._corrupt.sum())
        if count > max(1, self.max_corrupt_share * len(self)):
            names = [self.get_data_info(int(one))['img_path'] for one in self._corrupt.nonzero()[:10, 0]]
            raise RunError(
                f'{count} of {len(self)} images are unreadable, more than max_corrupt_share='
                f'{self.max_corrupt_share} allows: {", ".join(names)}'
            )
