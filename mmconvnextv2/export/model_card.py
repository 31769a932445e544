"""Model cards for exported weights: a README.md in the format of model hubs."""

from typing import NamedTuple

from ..checkpoint import LICENCE
from ..utils.config import IMAGENET
from .graphs import ExportedPixels

TASKS = {True: 'image-classification', False: 'image-feature-extraction'}  # by is_classifier


class ModelCard(NamedTuple):
    """User-supplied metadata of a model.

    Args:
        license (str): Identifier such as ``'cc-by-nc-4.0'``.
        config (str, optional): Name of the config that trained the model. Defaults to None.
        metrics (dict): Metric values as text, by name. Defaults to none.
        pixels (ExportedPixels): Input format. Defaults to RGB with ImageNet's mean and standard deviation.
    """

    license: str
    config: str | None = None
    metrics: dict[str, str] = {}
    pixels: ExportedPixels = ExportedPixels('RGB', IMAGENET.mean, IMAGENET.std)


def write_card(
    path: str, title: str, card: ModelCard, library: str, facts: dict[str, str], usage: str, is_classifier: bool
) -> None:
    """Write a model card.

    Args:
        path (str): File to write.
        title (str): Heading of the card.
        card (ModelCard): User-supplied metadata.
        library (str): Library that loads the weights.
        facts (dict): Rows of the first table; rows for the input format and the config are added.
        usage (str): Python code that loads the weights.
        is_classifier (bool): Whether hubs list the model under image classification or feature extraction.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=card.license,
        library_name=library,
        pipeline_tag=TASKS[is_classifier],
        tags=['convnextv2', 'mmconvnextv2'],
    )
    order, *numbers = card.pixels
    mean, std = (', '.join(f'{value:g}' for value in values) for values in numbers)
    facts = {
        **facts,
        'images': f'{order}, mean {mean}, standard deviation {std} of 0 to 255',
        'trained by': card.config or 'unspecified',
    }
    parts = [f'# {title}', 'ConvNeXt V2 (arXiv 2301.00808), exported by mmconvnextv2.', _table('', '', facts)]
    if card.metrics:
        parts.append('## Metrics\n\n' + _table('metric', 'value', card.metrics))
    parts.append(f'## How to load\n\n```python\n{usage}\n```')
    parts.append(f'## Licence\n\n{card.license}. {LICENCE} This also holds for weights that were trained from them.')
    text = '\n\n'.join(parts)
    ModelCard(f'---\n{data.to_yaml()}\n---\n\n{text}\n').save(path)


def _table(left: str, right: str, rows: dict[str, str]) -> str:
    return '\n'.join([f'| {left} | {right} |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items())])
