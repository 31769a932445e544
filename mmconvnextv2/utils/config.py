"""Read configs that inherit from a recipe of an installed package, ``_base_ = 'mmconvnextv2::upernet/NAME.py'``.

MMEngine's ``Config.fromfile`` finds packages through ``MODULE2PACKAGE``, marks inherited settings with the scope of
their package, and looks types up in the registries of that scope. This package has no registries: its recipes are
written for MMDetection, MMSegmentation or MMPretrain, which they name in ``default_scope``.
"""

import os
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .compat import FORKS, installed_version
from .errors import MissingFileError, UserError
from .public_models import find_config
from .suggestions import check_overrides

TOOLS = Path(__file__).parents[1] / '.mim' / 'tools'  # files of tools/, in an installed package, too
SCOPE = __name__.partition('.')[0]
SCOPES = ('mmdet', 'mmpretrain', 'mmseg')
SPLITS = ('train', 'val', 'test')
MISFITS = (AttributeError, IndexError, KeyError, TypeError)  # what mmengine raises for overrides
OURS = dict(
    mmdet=(
        'datasets.coco',
        'datasets.lvis',
        'datasets.valid_pixels',
        'models.fp32_detection',
        'models.fp32_transformers',
        'models.padding_detection',
    ),
    mmpretrain=('datasets.valid_pixels', 'models.padding_classification'),
    mmseg=('datasets.segmentation', 'datasets.valid_pixels', 'models.padding_segmentation'),
)
# What takes over in a model whose backbone has valid_sites=True
AWARE = dict(
    ChannelMapper='ValidChannelMapper',
    ClsDataPreprocessor='NaNPaddedClsDataPreprocessor',
    DetDataPreprocessor='NaNPaddedDetDataPreprocessor',
    FPN='ValidFPN',
    SegDataPreProcessor='NaNPaddedSegDataPreProcessor',
    UPerHead='ValidUPerHead',
)
LOADERS = ('LoadAnnotations', 'LoadCheckedLabels', 'LoadPanopticAnnotations')


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
        path (str): Config file, or the name of a recipe or public model.

    Returns:
        Config: The config, with recipes as if they were inherited by path.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a module of ``custom_imports`` cannot be imported; the message names what is missing.
    """
    path = path if os.path.isfile(path) else find_config(path) or path
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


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, normalise its data settings and import the package of its ``default_scope``.

    Args:
        path (str): The config file, or the name of a recipe or public model.
        options (dict, optional): Overrides by dotted key, as ``--cfg-options``. Defaults to None.

    Raises:
        ValueError: If the file does not exist, an override names no key, or ``default_scope`` is not installed.
    """
    cfg = read_config(path)
    check_overrides(cfg, options)
    _merge(cfg, {key: whole_path(value) for key, value in (options or {}).items()})
    settle_data(cfg)
    settle_padding(cfg)
    import_scope(cfg)
    return cfg


def _merge(cfg: Config, options: dict[str, Any]) -> None:
    try:
        cfg.merge_from_dict(options)
    except MISFITS as error:
        for key, value in options.items():  # find the override that fails alone
            try:
                deepcopy(cfg).merge_from_dict({key: value})
            except MISFITS:
                raise UserError(
                    f'--cfg-options {key}={value} does not fit the config ({error}): the parts of a dotted key '
                    'must be keys of dicts, or indices of lists of dicts'
                ) from error
        raise


def settle_data(cfg: Config) -> None:
    """Normalise the data settings of a config in place.

    A string in ``metainfo.classes`` that is not a file becomes a tuple with one class. Settings that need data workers
    are disabled for loaders without workers.
    """
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        if not loader.get('num_workers', 1):
            loader['persistent_workers'] = False
            loader.pop('prefetch_factor', None)
        for dataset in inner_datasets(loader.get('dataset') or {}):
            metainfo = dataset.get('metainfo') or {}
            if isinstance(metainfo.get('classes'), str) and not os.path.isfile(metainfo['classes']):
                metainfo['classes'] = (metainfo['classes'],)


def settle_padding(cfg: Config) -> None:
    """Let padding be marked, in place, where ``model.backbone.valid_sites`` is set.

    The data preprocessor, necks and UperNet's head become their versions of ``AWARE``; arguments and weights stay.

    Raises:
        ValueError: If a pipeline marks invalid pixels, but the backbone does not leave them out.
    """
    model = cfg.get('model') or {}
    if (model.get('backbone') or {}).get('valid_sites'):
        if 'data_preprocessor' in cfg and 'data_preprocessor' not in model:  # as MMPretrain's configs have it
            cfg.data_preprocessor = {'type': 'ClsDataPreprocessor', **cfg.data_preprocessor}
        necks = model.get('neck')
        parts = [cfg.get('data_preprocessor'), model.get('data_preprocessor'), model.get('decode_head')]
        parts += necks if isinstance(necks, list) else [necks]
        for part in parts:
            if isinstance(part, dict) and part.get('type') in AWARE:
                part['type'] = AWARE[part['type']]
        return
    for split in SPLITS:
        for dataset in inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}):
            if any(step.get('type') == 'MarkInvalidPixels' for step in dataset.get('pipeline') or ()):
                raise UserError(
                    f'{split}_dataloader.dataset.pipeline marks invalid pixels with NaN, which this backbone would '
                    'spread over the image: add --cfg-options model.backbone.valid_sites=True, or remove '
                    'MarkInvalidPixels'
                )


def import_scope(cfg: Config) -> None:
    """Import the package of ``default_scope``, which registers its classes.

    Raises:
        ValueError: If the scope is unknown or not installed.
    """
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise UserError(f'default_scope={scope!r} is unknown: expected one of {sorted(SCOPES)}')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
        for name in OURS.get(scope, ()):  # even if the user's config replaces custom_imports
            import_module(f'mmconvnextv2.{name}')
    except ModuleNotFoundError as error:
        raise UserError(f'default_scope={scope!r} needs the package {error.name!r}: install it first') from error


def whole_path(value: object) -> object:
    """Rejoin an existing path with commas, which ``--cfg-options`` splits to a list; return other values unchanged."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        joined = ','.join(value)
        return joined if os.path.exists(joined) else value
    return value


def inner_datasets(dataset: dict) -> Iterator[dict]:
    """Yield the configs of the data sets that read files, inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is None:
        yield dataset
        return
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from inner_datasets(child)


def reads_annotations(step: dict) -> bool:
    """Return whether a pipeline step reads boxes, masks or labels."""
    return step['type'].rpartition('.')[2] in LOADERS


def steps_of_test(cfg: Config) -> list[dict]:
    """Return the pipeline of ``test_dataloader``, which ``tools/test.py`` uses, without steps that read labels."""
    dataset = next(inner_datasets((cfg.get('test_dataloader') or {}).get('dataset') or {}), {})
    return [step for step in dataset.get('pipeline') or [] if not reads_annotations(step)]


def reads_files(step: dict) -> bool:
    """Return whether a pipeline step reads an image file."""
    return step['type'].rpartition('.')[2].startswith('Load')
