"""Read configs that start from a recipe of an installed package, ``_base_ = 'mmconvnextv2::upernet/NAME.py'``.

MMEngine's ``Config.fromfile`` finds packages through ``MODULE2PACKAGE``, gives what it inherits the scope of the
package it came from, and looks types up in the registries of that scope. This package has no registries: its recipes
are written for MMDetection, MMSegmentation or MMPretrain, and say so in ``default_scope``.
"""

import os
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .compat import FORKS, installed_version
from .errors import MissingFileError, UserError

TOOLS = Path(__file__).parents[1] / '.mim' / 'tools'  # the files of tools/, also in an installed package
SCOPE = __name__.partition('.')[0]


def register_names() -> None:
    """Tell MMEngine the names that it lacks; this is the only place that knows how the forks differ from upstream.

    ``mmconvnextv2::`` gets the name of a module, because MMEngine would look for a distribution in site-packages, where
    an editable install has no files. ``mmseg::`` gets the distribution of the fork where that is the installed one.
    """
    MODULE2PACKAGE.setdefault(SCOPE, f'{SCOPE}.version')
    if not installed_version('mmsegmentation') and installed_version(FORKS['mmsegmentation']):
        MODULE2PACKAGE['mmseg'] = FORKS['mmsegmentation']


def read_config(path: str) -> Config:
    """Read a config file as ``Config.fromfile`` does, its own recipes' types in their ``default_scope``.

    Args:
        path (str): The config file.

    Returns:
        Config: What the recipe itself would be, with the changes of the file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a module of ``custom_imports`` cannot be imported; the message names what is missing.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'config={path!r} does not exist; `ls configs/*` lists the recipes.')
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # mmengine names what it was importing, and not what is missing
        root: BaseException = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__
        raise UserError(
            f'{path}: custom_imports cannot be imported: {root}. Install what is missing, or set '
            'PYTHONPATH to the folder of a module of your own; `python -m mmconvnextv2 doctor` tries the '
            'rest'
        ) from error
    _drop_scope(cfg._cfg_dict)
    return cfg


class PixelNormalization(NamedTuple):
    """What a model's data preprocessor does to pixels: whether channels are swapped, and their mean and deviation, 0 to
    255 in 8 bits, None where they stay as they are."""

    swaps_channels: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


IMAGENET = PixelNormalization(True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # of RGB


def read_normalization(cfg: Config) -> PixelNormalization:
    """Read a config's data preprocessor, of the model or, in MMPretrain's way, beside it."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean, std = (tuple(preprocessor[key]) if preprocessor.get(key) else None for key in ('mean', 'std'))
    return PixelNormalization(bool(preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')), mean, std)


def _drop_scope(node) -> None:
    if isinstance(node, dict):
        if node.get('_scope_') == SCOPE:
            del node['_scope_']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _drop_scope(child)
