"""Layer-wise and group-wise learning-rate decay (ConvNeXt V2, arXiv 2301.00808, appendix A).

The grouping follows the official optimizer code: ``layer_wise`` is its "single", ``group_wise`` its "group", which
MMDetection, MMSegmentation and ConvNeXt V1 call ``layer_wise`` with 6 or 12 layers. Differs from the upstream
constructors: the group count follows from the depths, GRN and mask tokens are exempt from weight decay, and
parameters of equal learning rate and weight decay share one group, so that fused optimizers stay fast.
"""
import math
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .errors import UserError

DECAY_TYPES = ('layer_wise', 'group_wise')
BLOCKS_PER_GROUP = 3


def check_decay_type(decay_type: str) -> None:
    """Raise ``ValueError`` unless ``decay_type`` is one of ``DECAY_TYPES``."""
    if decay_type not in DECAY_TYPES:
        raise UserError(f'decay_type={decay_type!r} is unknown: choose "layer_wise" (one step a block) or '
                        '"group_wise" (three blocks of stage 3 a step; what mmdet and mmseg call layer_wise).')


def num_decay_layers(depths: Sequence[int], decay_type: str) -> int:
    """Count the decayed layers before the head.

    Args:
        depths (Sequence[int]): Blocks of each of the four stages.
        decay_type (str): 'layer_wise' or 'group_wise'.

    Returns:
        int: ``sum(depths)``, or 2 + ceil(depths[2] / 3) + 1 groups (base 12, tiny 6, atto 5).
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


def layer_depth(name: str, depths: Sequence[int], decay_type: str = 'group_wise') -> Tuple[int, int]:
    """Say at which depth a backbone parameter stands.

    A downsampling layer belongs to the first block of the stage that it opens. The stem has an id of its own, 0, with
    ``group_wise`` and shares id 1 with the first block with ``layer_wise``, as in the official code.

    Args:
        name (str): Parameter name inside the backbone, e.g. ``stages.2.5.norm.weight``.
        depths (Sequence[int]): Blocks of each of the four stages.
        decay_type (str): 'layer_wise' or 'group_wise'. Defaults to 'group_wise'.

    Returns:
        Tuple[int, int]: Layer id, and the number of ids including the head's. The learning rate is scaled by
        ``decay_rate ** (num_ids - layer_id - 1)``; output norms and everything after the backbone keep scale 1.

    Examples:
        >>> layer_depth('stages.2.26.norm.weight', (3, 3, 27, 3), 'group_wise')
        (11, 14)
    """
    num_layers = num_decay_layers(depths, decay_type)
    parts = name.split('.')
    layer_id_of = _block_layer_id if decay_type == 'layer_wise' else _group_layer_id
    if parts[0] == 'stages':
        layer_id = layer_id_of(int(parts[1]), int(parts[2]), depths)
    elif parts[0] == 'downsample_layers':
        is_group_stem = parts[1] == '0' and decay_type == 'group_wise'
        layer_id = 0 if is_group_stem else layer_id_of(int(parts[1]), 0, depths)
    else:
        layer_id = num_layers + 1
    return layer_id, num_layers + 2


def is_exempt_from_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """True for vectors and scalars, biases, GRN's gamma and beta of any shape, and mask tokens."""
    leaf = name.rsplit('.', 1)[-1]
    return parameter.ndim <= 1 or leaf in ('bias', 'mask_token') or f'.{name}'.endswith(('.grn.gamma', '.grn.beta'))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Shrink the learning rate of a ConvNeXt V2 backbone towards its stem.

    The model, or its ``backbone``, answers ``get_layer_depth(name, prefix, decay_type)``. Vectors, biases, GRN and
    mask tokens are not decayed. ``paramwise_cfg`` takes:

    - ``decay_rate`` (float): Factor a layer, in (0, 1].
    - ``decay_type`` (str): 'layer_wise' or 'group_wise'. Defaults to 'group_wise'. Rates published for mmdet, mmseg
      and ConvNeXt V1 under the name ``layer_wise`` are rates of ``group_wise`` here.
    - ``custom_keys`` (dict): As in MMEngine: a key that is part of a parameter's name, the longest first, to
      ``dict(lr_mult=..., decay_mult=...)``. ``lr_mult`` multiplies the layer's scale; ``decay_mult``, when given,
      replaces the exemption.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper, with ``optimizer``.
        paramwise_cfg (dict, optional): See above.

    Raises:
        ValueError: For an unknown key or value, and for a model without ``get_layer_depth``.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.95, decay_type='group_wise'))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = set(self.paramwise_cfg) - {'decay_rate', 'decay_type', 'custom_keys'}
        if unknown:
            raise UserError(f'paramwise_cfg holds {sorted(unknown)}; allowed are decay_rate, decay_type, custom_keys.')
        self.decay_rate = self.paramwise_cfg.get('decay_rate', 1.)
        self.decay_type = self.paramwise_cfg.get('decay_type', 'group_wise')
        if not 0 < self.decay_rate <= 1:
            raise UserError(f'decay_rate={self.decay_rate!r} must lie in (0, 1].')
        check_decay_type(self.decay_type)

    def _custom_cfg(self, name: str) -> dict:
        keys = sorted(self.paramwise_cfg.get('custom_keys', {}), key=lambda key: (-len(key), key))
        match = next((key for key in keys if key in name), None)
        return {} if match is None else self.paramwise_cfg['custom_keys'][match]

    def _settings(self, name: str, parameter: nn.Parameter, depth_of: Callable) -> Tuple[float, float]:
        """Learning-rate scale and weight decay of one parameter."""
        layer_id, num_ids = depth_of(name)
        custom = self._custom_cfg(name)
        scale = self.decay_rate**(num_ids - layer_id - 1) * custom.get('lr_mult', 1.)
        default_mult = 0. if is_exempt_from_weight_decay(name, parameter) else 1.
        weight_decay = (self.base_wd or 0.) * custom.get('decay_mult', default_mult)
        return scale, weight_decay

    def _depth_function(self, module: nn.Module, prefix: str) -> Callable:
        # mmpretrain's whole models have a method of the same name that knows no decay_type
        if hasattr(module, 'backbone'):
            owner, owner_prefix = module.backbone, f'{prefix}backbone.'
        else:
            owner, owner_prefix = module, prefix
        if not hasattr(owner, 'get_layer_depth'):
            raise UserError(f'{type(module).__name__} has no backbone with get_layer_depth(); layer decay needs a '
                            'ConvNeXtV2 backbone. Remove "constructor" and "paramwise_cfg" to train without decay.')
        return lambda name: owner.get_layer_depth(name, owner_prefix, self.decay_type)

    def add_params(self, params: List[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Append one parameter group for each pair of learning rate and weight decay.

        Args:
            params (List[dict]): The list of groups; modified in place.
            module (nn.Module): The model.
            prefix (str): Prefix of the parameter names. Defaults to ''.
        """
        if is_model_wrapper(module):
            module = module.module
        depth_of = self._depth_function(module, prefix)
        groups: Dict[Tuple[float, float], dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            scale, weight_decay = self._settings(prefix + name, parameter, depth_of)
            group = groups.setdefault((scale, weight_decay), dict(params=[], weight_decay=weight_decay, lr_scale=scale))
            group['params'].append(parameter)
        for group in sorted(groups.values(), key=lambda group: (group['lr_scale'], group['weight_decay'])):
            if self.base_lr is not None:
                group['lr'] = self.base_lr * group['lr_scale']
            params.append(group)
        print_log(f'{self.decay_type} decay {self.decay_rate}: {len(groups)} parameter groups', logger='current')
