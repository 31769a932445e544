"""Depth of each backbone parameter for layer-wise learning-rate decay (arXiv 2301.00808, appendix A).

The grouping follows the official optimizer code: ``layer_wise`` is its "single", and ``group_wise`` its "group", which
MMDetection, MMSegmentation and ConvNeXt V1 call ``layer_wise`` with 6 or 12 layers. ``stage_wise`` is that of ConvNeXt
V1's segmentation recipes. Here the number of groups is derived from the depths.
"""

import math
from collections.abc import Sequence

from ..utils.errors import UserError

BLOCKS_PER_GROUP = 3


def check_decay_type(decay_type: str) -> None:
    """Raise ``ValueError`` unless ``decay_type`` is one of ``DECAY_TYPES``."""
    if decay_type not in DECAY_TYPES:
        raise UserError(
            f'decay_type={decay_type!r} is unknown: choose "layer_wise" (one step per block), '
            '"group_wise" (one step per three blocks of stage 3; mmdet and mmseg call it layer_wise) or '
            '"stage_wise" (one step per stage; ConvNeXt V1 on ADE20K).'
        )


def num_decay_layers(depths: Sequence[int], decay_type: str) -> int:
    """Return the number of decayed layers before the head.

    Args:
        depths (Sequence[int]): Number of blocks in each of the four stages.
        decay_type (str): One of ``DECAY_TYPES``.

    Returns:
        int: ``sum(depths)`` layers, or 2 + ceil(depths[2] / 3) + 1 groups (base 12, tiny 6, atto 5). ``stage_wise``
        counts the groups, too, and gives ids to stages.
    """
    check_decay_type(decay_type)
    if decay_type == 'layer_wise':
        return sum(depths)
    return 2 + math.ceil(depths[2] / BLOCKS_PER_GROUP) + 1


def _block_layer_id(stage: int, block: int, depths: Sequence[int]) -> int:
    return sum(depths[:stage]) + block + 1


def _group_layer_id(stage: int, block: int, depths: Sequence[int]) -> int:
    if stage == 3:
        return num_decay_layers(depths, 'group_wise')
    if stage == 2:
        return 3 + block // BLOCKS_PER_GROUP
    return stage + 1


def _stage_layer_id(stage: int, block: int, depths: Sequence[int]) -> int:
    return stage + 1


LAYER_IDS = dict(layer_wise=_block_layer_id, group_wise=_group_layer_id, stage_wise=_stage_layer_id)
DECAY_TYPES = tuple(LAYER_IDS)


def layer_depth(name: str, depths: Sequence[int], decay_type: str = 'group_wise') -> tuple[int, int]:
    """Return the layer id of a backbone parameter, and the number of ids.

    A downsampling layer has the id of the first block of the stage after it. As in the official code, the stem has id 0
    with ``group_wise``, and shares id 1 with the first block with ``layer_wise``. With ``stage_wise`` the stem and all
    downsampling layers have id 0 and the stages 1 to 4, out of as many ids as there are groups. In deep models even the
    last stage is then far below the head: 9 steps in ``base``.

    Args:
        name (str): Parameter name inside the backbone, e.g. ``stages.2.5.norm.weight``.
        depths (Sequence[int]): Number of blocks in each of the four stages.
        decay_type (str): One of ``DECAY_TYPES``. Defaults to ``'group_wise'``.

    Returns:
        tuple[int, int]: Layer id, and the number of ids including the head's. The learning rate is scaled by
        ``decay_rate ** (num_ids - layer_id - 1)``; output norms and everything after the backbone keep scale 1.

    Examples:
        >>> layer_depth('stages.2.26.norm.weight', (3, 3, 27, 3), 'group_wise')
        (11, 14)
    """
    num_layers = num_decay_layers(depths, decay_type)
    parts = name.split('.')
    layer_id_of = LAYER_IDS[decay_type]
    if parts[0] == 'stages':
        layer_id = layer_id_of(int(parts[1]), int(parts[2]), depths)
    elif parts[0] == 'downsample_layers':
        is_deepest = decay_type == 'stage_wise' or (parts[1] == '0' and decay_type == 'group_wise')
        layer_id = 0 if is_deepest else layer_id_of(int(parts[1]), 0, depths)
    else:
        layer_id = num_layers + 1
    return layer_id, num_layers + 2
