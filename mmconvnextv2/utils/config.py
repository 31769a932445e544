"""Read configs that inherit from a recipe of an installed package, ``_base_ = 'mmconvnextv2::upernet/NAME.py'``.

MMEngine's ``Config.fromfile`` finds packages through ``MODULE2PACKAGE``, marks inherited settings with the scope of
their package, and looks types up in the registries of that scope. This package has no registries: its recipes are
written for MMDetection, MMSegmentation or MMPretrain, which they name in ``default_scope``.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .compat import FORKS, installed_version
from .errors import MissingFileError, UserError

TOOLS = Path(__file__).parents[1] / '.mim' / 'tools'  # files of tools/, in an installed package, too
SCOPE = __name__.partition('.')[0]


def register_names() -> None:
    """Register package names that MMEngine lacks; only this function knows how the forks differ from upstream.

    ``mmconvnextv2::`` maps to a module name, because MMEngine would look for a distribution in site-packages, where an
    editable install has no files. ``mmseg::`` maps to the distribution of the fork if that is the installed one.
    """
    MODULE2PACKAGE.setdefault(SCOPE, f'{SCOPE}.version')
    if not installed_version('mmsegmentation') and installed_version(FORKS['mmsegmentation']):
        MODULE2PACKAGE['mmseg'] = FORKS['mmsegmentation']


def read_config(path: str) -> Config:
    """Read a config file as ``Config.fromfile`` does, but keep types of this package's recipes in ``default_scope``.

    Args:
        path (str): Config file.

    Returns:
        Config: The config, with recipes as if they were inherited by path.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a module of ``custom_imports`` cannot be imported; the message names what is missing.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'config={path!r} does not exist; `ls configs/*` lists the recipes.')
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # mmengine names the module that it was importing, not the one that is missing
        root: BaseException = error
        while inner := root.__cause__ or root.__context__:
            root = inner
        raise UserError(
            f'{path}: custom_imports cannot be imported: {root}. Install what is missing, or set '
            'PYTHONPATH to the folder of your own module; `python -m mmconvnextv2 doctor` tests the '
            'rest'
        ) from error
    _drop_scope(cfg._cfg_dict)
    return cfg


class PixelNormalization(NamedTuple):
    """Pixel normalisation of a model's data preprocessor.

    Args:
        swaps_channels (bool): Whether BGR becomes RGB.
        mean (tuple[float], optional): Mean per channel on the scale 0 to 255, None without normalisation.
        std (tuple[float], optional): Standard deviation per channel on the same scale, None without normalisation.
    """

    swaps_channels: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


IMAGENET = PixelNormalization(True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # RGB order


def read_normalization(cfg: Config) -> PixelNormalization:
    """Read a config's data preprocessor, from ``model`` or, as in MMPretrain, from the top level."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean, std = (tuple(preprocessor[key]) if preprocessor.get(key) else None for key in ('mean', 'std'))
    return PixelNormalization(bool(preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')), mean, std)


def _drop_scope(node: Any) -> None:
    if isinstance(node, dict):
        if node.get('_scope_') == SCOPE:
            del node['_scope_']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _drop_scope(child)
