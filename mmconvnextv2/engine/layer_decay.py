"""Layer-wise and group-wise learning-rate decay (ConvNeXt V2, arXiv 2301.00808, appendix A).

The backbone knows the depth of each of its parameters. Differences from the upstream constructors: GRN and mask tokens
are exempt from weight decay, and parameters of equal learning rate and weight decay share one group, which keeps fused
optimizers fast.
"""

from collections.abc import Callable
from numbers import Real

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.layer_depth import check_decay_type
from ..utils.errors import UserError
from .model_state import unwrapped


def is_exempt_from_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Return True for vectors, scalars, biases, GRN's gamma and beta of any shape, and mask tokens."""
    leaf = name.rsplit('.', 1)[-1]
    return parameter.ndim <= 1 or leaf in ('bias', 'mask_token') or f'.{name}'.endswith(('.grn.gamma', '.grn.beta'))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Optimizer constructor that lowers the learning rate of a ConvNeXt V2 backbone layer by layer towards its stem.

    The model, or its ``backbone``, must have a method ``get_layer_depth(name, prefix, decay_type)``. Vectors, biases,
    GRN and mask tokens are exempt from weight decay. ``paramwise_cfg`` takes:

    - ``decay_rate`` (float): Factor per layer, in (0, 1].
    - ``decay_type`` (str): 'layer_wise', 'group_wise' or 'stage_wise'. Defaults to 'group_wise'. Rates published for
      mmdet, mmseg and ConvNeXt V1 under the name ``layer_wise`` are ``group_wise`` rates here; ``stage_wise`` is the
      same there and here.
    - ``custom_keys`` (dict): As in MMEngine, maps a substring of parameter names to
      ``dict(lr_mult=..., decay_mult=...)``. If several match, the longest wins. ``lr_mult`` multiplies the layer's
      scale; ``decay_mult``, when given, replaces the exemption from weight decay.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper, with ``optimizer``.
        paramwise_cfg (dict, optional): See above.

    Raises:
        ValueError: For an unknown key or value, or a model without ``get_layer_depth``.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.95, decay_type='group_wise'))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        unknown = set(self.paramwise_cfg) - {'decay_rate', 'decay_type', 'custom_keys'}
        if unknown:
            raise UserError(
                f'paramwise_cfg has unknown keys {sorted(unknown)}: expected decay_rate, decay_type, custom_keys'
            )
        self.decay_rate = self.paramwise_cfg.get('decay_rate', 1.0)
        self.decay_type = self.paramwise_cfg.get('decay_type', 'group_wise')
        rate = (optim_wrapper_cfg.get('optimizer') or {}).get('lr', 0)
        if not isinstance(rate, Real):
            raise UserError(f'optim_wrapper.optimizer.lr={rate!r}: expected a number')
        if not 0 < self.decay_rate <= 1:
            raise UserError(f'decay_rate={self.decay_rate!r}: expected a number in (0, 1]')
        check_decay_type(self.decay_type)

    def _custom_cfg(self, name: str) -> dict:
        keys = sorted(self.paramwise_cfg.get('custom_keys', {}), key=lambda key: (-len(key), key))
        match = next((key for key in keys if key in name), None)
        return {} if match is None else self.paramwise_cfg['custom_keys'][match]

    def _settings(self, name: str, parameter: nn.Parameter, depth_of: Callable) -> tuple[float, float]:
        """Return the learning-rate scale and the weight decay of one parameter."""
        layer_id, num_ids = depth_of(name)
        custom = self._custom_cfg(name)
        scale = self.decay_rate ** (num_ids - layer_id - 1) * custom.get('lr_mult', 1.0)
        default_mult = 0.0 if is_exempt_from_weight_decay(name, parameter) else 1.0
        weight_decay = (self.base_wd or 0.0) * custom.get('decay_mult', default_mult)
        return scale, weight_decay

    def _depth_function(self, module: nn.Module, prefix: str) -> Callable:
        # mmpretrain's classifiers have a method of the same name without decay_type, so ask the backbone
        if hasattr(module, 'backbone'):
            owner, owner_prefix = module.backbone, f'{prefix}backbone.'
        else:
            owner, owner_prefix = module, prefix
        if not hasattr(owner, 'get_layer_depth'):
            raise UserError(
                f'{type(module).__name__} has no backbone with get_layer_depth(); layer decay needs a '
                'ConvNeXtV2 backbone. Remove "constructor" and "paramwise_cfg" to train without decay.'
            )
        return lambda name: owner.get_layer_depth(name, owner_prefix, self.decay_type)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Append one parameter group per distinct pair of learning rate and weight decay.

        Args:
            params (List[dict]): List of parameter groups, modified in place.
            module (nn.Module): Model whose parameters are added.
            prefix (str): Prefix of the parameter names. Defaults to ''.
        """
        module = unwrapped(module)
        depth_of = self._depth_function(module, prefix)
        groups: dict[tuple[float, float], dict] = {}
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
