"""Pipelines whose errors name the image and the step, in the main process and in data workers alike.

What mmcv, mmdet, mmseg and mmpretrain raise inside a transform names neither, and ``python -O`` drops assertions.
"""

from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose

from ..utils.errors import LIBRARIES, UserError


class NamingPipeline(Compose):
    """mmengine's ``Compose`` for transforms that are built: an error in one of OpenMMLab's is one line.

    Errors of the user's own transforms, and of this package's, pass as they are.

    Args:
        pipeline (Compose): What it replaces.
    """

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        """Run the transforms; see ``Compose``.

        Raises:
            UserError: Naming the image, the step and the remedy.
        """
        path = data.get('img_path')
        for number, step in enumerate(self.transforms):
            try:
                data = step(data)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                if type(step).__module__.partition('.')[0] not in LIBRARIES:
                    raise
                raise UserError(_explain(number, step, path, error)) from error
            if data is None:
                return None
        return data


def _explain(number: int, step: Any, path: str | None, error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return (
            f'{error.filename}: {error.strerror}, and the data name it: put it there, or take it out of the annotations'
        )
    name = path or 'an image'
    if isinstance(step, LoadImageFromFile):
        return f'{name} cannot be read as an image: replace it, or take it out of the data'
    reason = ' '.join(str(error).split()) or 'no reason given'
    return (
        f'{name}: {type(step).__name__}, step {number} of its pipeline, failed with {type(error).__name__}: '
        f'{reason[:500]}. Check its annotations and the arguments of the step; tools/browse.py shows samples, '
        '--traceback where it failed'
    )


def name_files(dataset: Any) -> None:
    """Make the pipelines of a data set, or of those that it wraps, name their files."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for child in inner:
        if child is not None:
            name_files(child)
    if type(getattr(dataset, 'pipeline', None)) is Compose:
        dataset.pipeline = NamingPipeline(dataset.pipeline)
