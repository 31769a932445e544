"""Pipelines whose errors name the image and the step, both in the main process and in data workers.

Errors that mmcv, mmdet, mmseg and mmpretrain raise inside a transform name neither, and ``python -O`` drops assertions.
"""

from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose

from ..utils.errors import LIBRARIES, UserError


class NamingPipeline(Compose):
    """mmengine's ``Compose`` that reports an error in one of OpenMMLab's transforms in one line.

    Errors of this package's transforms and of the user's are raised unchanged.

    Args:
        pipeline (Compose): Pipeline to replace; its transforms are already built.
    """

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        """Run the transforms; see ``Compose``.

        Raises:
            UserError: If a transform of OpenMMLab fails; the message names the image, the step and the remedy.
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
        return f'{error.filename}: {error.strerror}, but the annotations list it: add the file, or remove its entry'
    name = path or 'an image'
    if isinstance(step, LoadImageFromFile):
        return f'{name} cannot be read as an image: replace it, or remove it from the data'
    reason = ' '.join(str(error).split()) or 'no reason given'
    return (
        f'{name}: {type(step).__name__}, step {number} of its pipeline, failed with {type(error).__name__}: '
        f'{reason[:500]}. Check its annotations and the arguments of the step. tools/browse.py shows '
        'samples, --traceback shows where it failed'
    )


def name_files(dataset: Any) -> None:
    """Make the pipelines of a data set, including those of wrapped data sets, name their files in errors."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for child in inner:
        if child is not None:
            name_files(child)
    if type(getattr(dataset, 'pipeline', None)) is Compose:
        dataset.pipeline = NamingPipeline(dataset.pipeline)
