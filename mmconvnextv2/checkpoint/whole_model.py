"""Weights of whole detectors, segmentors and classifiers, whichever code wrote them.

Meta AI's detectors and segmentors of ConvNeXt V1 have MMDetection's and MMSegmentation's heads on a backbone with the
official names. Their classifiers, timm's and Hugging Face's have no prefix.
"""

import re

from torch import Tensor

from ..utils.errors import UserError
from .conversion import canonical_classifier, detect_layout, read_backbone, read_model
from .state_dict import extract_state_dict

BACKBONE = 'backbone.'
OUTPUT_NORM = re.compile(r'norm[0-3]\.(weight|bias)')  # has this name in every code that has several


def whole_model_weights(content: dict, weights: str = 'default') -> dict[str, Tensor]:
    """Return the weights of a checkpoint under the names of OpenMMLab's models with our backbone.

    Args:
        content (dict): Content of a checkpoint file, or a state dict.
        weights (str): See :func:`~mmconvnextv2.checkpoint.extract_state_dict`. Defaults to ``'default'``.

    Returns:
        dict[str, Tensor]: All weights of the file. Names of a known layout become canonical ones; others stay.
    """
    state = with_canonical_backbone(extract_state_dict(content, weights))
    return state if any(name.startswith(BACKBONE) for name in state) else _as_classifier(state)


def with_canonical_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename ``backbone.*`` of a whole model to canonical names, and drop the prefix of DistributedDataParallel."""
    if state and all(name.startswith('module.') for name in state):
        state = {name.removeprefix('module.'): value for name, value in state.items()}
    backbone = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    norms = {name: value for name, value in backbone.items() if OUTPUT_NORM.fullmatch(name)}
    rest = {name: value for name, value in backbone.items() if name not in norms}
    if not _is_foreign(rest):
        return state
    canonical = {**read_backbone(rest).weights, **norms}
    heads = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}
    return {**{BACKBONE + name: value for name, value in canonical.items()}, **heads}


def _as_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not _is_foreign(state):
        return state
    model = read_model(state)
    return canonical_classifier(model) if model.has_head else state


def _is_foreign(names: dict[str, Tensor]) -> bool:
    """Return whether the names are those of a known layout other than the canonical one."""
    try:
        return detect_layout(names) != 'canonical'
    except UserError:  # another backbone; the comparison with the model says so
        return False
