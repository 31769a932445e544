"""Public checkpoints by name: what the metafiles of ``configs/`` list under ``Weights``.

A name refers to a config and to the address of weights that fit it. ``Weights Name`` is the short one; the name of the
recipe works too.
"""

import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from .errors import UserError
from .suggestions import nearest

CONFIGS = Path(__file__).parents[1] / '.mim' / 'configs'  # in an installed package, too
BYTES = 4  # of a float32 parameter
SIZES = dict(a='atto', f='femto', p='pico', n='nano', t='tiny', s='small', b='base', l='large', xl='xlarge', h='huge')


class PublicModel(NamedTuple):
    """Public weights, and the recipe that they fit.

    Attributes:
        name (str): Short name, such as ``'mask-rcnn_convnextv2-b'``.
        recipe (str): Name of the recipe.
        config (str): Path of its config.
        weights (str): Address of the weights.
        task (str): What the recipe trains, ``'Object Detection'`` for example, or ``'Pretraining'``.
        size (str): Size of the backbone, ``'tiny'`` for example.
        start (str): What the training started from: ``'random'`` weights, ``'FCMAE'``, or classifiers of
            ``'ImageNet-1K'`` or ``'ImageNet-22K'``.
        published (str): What was published for the weights; empty if nothing was.
        provenance (str): Who trained them.
        licence (str): Licence of the weights.
        megabytes (int): Size of the parameters in float32; a file may be larger.
    """

    name: str
    recipe: str
    config: str
    weights: str
    task: str
    size: str
    start: str
    published: str
    provenance: str
    licence: str
    megabytes: int


@cache
def public_models() -> tuple[PublicModel, ...]:
    """Return all public models in the order of their names."""
    found = []
    for path in sorted(CONFIGS.glob('*/metafile.yml')):
        for entry in yaml.safe_load(path.read_text())['Models']:
            if 'Weights' in entry:
                found.append(_public_model(entry))
    return tuple(sorted(found))


def _public_model(entry: dict) -> PublicModel:
    metadata, results = entry['Metadata'], entry.get('Results') or []
    values = [f'{value} {metric}' for result in results for metric, value in result['Metrics'].items()]
    return PublicModel(
        name=metadata['Weights Name'],
        recipe=entry['Name'],
        config=str(CONFIGS.parent / entry['Config']),
        weights=entry['Weights'],
        task=results[0]['Task'] if results else 'Pretraining',
        size=SIZES[re.sub(r'.*convnextv[12]-([a-z]+)_.*', r'\1', entry['Name'])],
        start=metadata['Weights Start'],
        published=metadata.get('Weights Results') or ', '.join(values),
        provenance=metadata['Weights By'],
        licence=metadata['Weights Licence'],
        megabytes=round(metadata['Parameters'] * BYTES / 1e6),
    )


def list_models(pattern: str = '*') -> list[PublicModel]:
    """Return the public models whose name, recipe or task contains or matches a pattern, in any case."""
    wanted = pattern.lower() if any(sign in pattern for sign in '*?[') else f'*{pattern.lower()}*'
    return [one for one in public_models() if any(fnmatch(text.lower(), wanted) for text in (*one[:2], one.task))]


def find_model(name: str) -> PublicModel | None:
    """Return the public model with a name or for a recipe, or None."""
    return next((one for one in public_models() if name in (one.name, one.recipe)), None)


def find_config(name: str) -> str | None:
    """Return the path of the config of a public model or recipe, or None."""
    model = find_model(name)
    if model is not None:
        return model.config
    return next((str(path) for path in sorted(CONFIGS.glob('*/*.py')) if path.stem == name), None)


def is_name(text: str) -> bool:
    """Return whether a text can only be a name: no path, no file extension, no address."""
    return bool(re.fullmatch(r'[\w-]+', text))


def get_model(name: str) -> PublicModel:
    """Return the public model of a name.

    Raises:
        ValueError: If no model has this name; the message suggests the closest one.
    """
    found = find_model(name)
    if found is None:
        near = nearest(name, [one.name for one in public_models()])
        hint = f'did you mean {near!r}? ' if near else ''
        raise UserError(
            f'{name!r} is neither a file nor the name of a public model: {hint}`python -m mmconvnextv2 models` lists '
            'the names'
        )
    return found
