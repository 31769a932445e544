"""Sharded training with torch's FSDP2 (``fully_shard``), as a strategy for mmengine's ``FlexibleRunner``.

mmengine's own ``FSDPStrategy`` is FSDP1, which needs GPUs and saves optimizer states in a layout specific to it. This
strategy also trains on CPUs, and its checkpoints have the layout of an unsharded run, so that either can resume from
the other.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable

import mmengine
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.registry import STRATEGIES
from mmengine.runner.checkpoint import save_checkpoint
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..models.convnext_v2 import ConvNeXtV2Block
from ..utils.errors import UserError
from .hooks.checkpoint import ATOMIC


@STRATEGIES.register_module()
class FSDP2Strategy(DDPStrategy):
    """Shard parameters, gradients and optimizer states over all processes, and gather each block when it is needed.

    Use it with ``runner_type='FlexibleRunner'`` and a launcher. The optimizer wrapper sets the precision. mmengine's
    ``EMAHook`` needs a full copy of the model and cannot be used.

    Args:
        kwargs: See mmengine's ``DDPStrategy``.

    Raises:
        ValueError: If there is only one process, or torch is older than 2.6.

    Examples:
        >>> runner_type = 'FlexibleRunner'
        >>> strategy = dict(type='FSDP2Strategy')
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shard each ConvNeXt V2 block, and the rest of the model as one unit."""
        fully_shard, register_fsdp_forward_method = _import_fsdp2()
        if not is_distributed():
            raise UserError(
                "strategy=dict(type='FSDP2Strategy') shards a model over processes, but there is only "
                'one: launch with tools/dist_train.sh, or remove runner_type and strategy from the config'
            )
        from torch.distributed.device_mesh import init_device_mesh

        model = self.convert_model(model.to(get_device()))
        mesh = init_device_mesh(get_device(), (self.world_size,))
        for block in [module for module in model.modules() if isinstance(module, ConvNeXtV2Block)]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # otherwise `reconstruct` leaves it unsharded
        if hasattr(model, 'reconstruct'):
            register_fsdp_forward_method(model, 'reconstruct')
        return model

    def model_state_dict(self) -> dict:
        """Return the full weights in the main process, and None for each elsewhere; every process must call it."""
        return _gather(self.model.state_dict())

    def optim_state_dict(self) -> dict:
        """Return the full optimizer state in the main process; every process must call it."""
        return _gather(super().optim_state_dict())

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> None:
        """Write one file in the unsharded layout; every process must call it. Arguments as in mmengine's strategies."""
        checkpoint = dict(state_dict=self.model_state_dict())
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            checkpoint['optimizer'] = self.optim_state_dict()
        if not is_main_process():
            return
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        checkpoint.update(extra_ckpt or {})
        checkpoint.setdefault('meta', {}).update(
            seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S'), mmengine_version=mmengine.__version__
        )
        if callback is not None:
            callback(checkpoint)
        save_checkpoint(checkpoint, filename, backend_args=ATOMIC)

    def load_checkpoint(self, filename: str, *, map_location='cpu', **kwargs) -> dict:
        """Read a checkpoint in the unsharded layout, always to the CPU, since it may not fit on a GPU."""
        return super().load_checkpoint(filename, map_location='cpu', **kwargs)

    def load_model_state_dict(
        self, state_dict: dict, *, strict: bool = False, revise_keys: list = [(r'^module.', '')]
    ) -> None:
        """Load full weights, of which each process keeps its shard."""
        parameters, parts = dict(self.model.named_parameters()), OrderedDict()
        for name, value in state_dict.items():
            for pattern, replacement in revise_keys:
                name = re.sub(pattern, replacement, name)
            parts[name] = _shard_like(value, parameters.get(name))
        super().load_model_state_dict(parts, strict=strict, revise_keys=[])

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer state of the full model, of which each process keeps its shard."""
        parameters = [parameter for group in self.optim_wrapper.param_groups for parameter in group['params']]
        state = {
            index: {key: _shard_like(value, parameters[index]) for key, value in moments.items()}
            for index, moments in state_dict['state'].items()
        }
        super().load_optim_state_dict({**state_dict, 'state': state})


def _import_fsdp2() -> tuple:
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise UserError("strategy=dict(type='FSDP2Strategy') needs torch >= 2.6") from error
    return fully_shard, register_fsdp_forward_method


def _gather(content: dict) -> dict:
    """Gather sharded tensors one at a time to the main process's CPU."""

    def whole(tensor: Tensor) -> Tensor | None:
        tensor = tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor
        return tensor.cpu() if is_main_process() else None

    return apply_to(content, lambda item: isinstance(item, Tensor), whole)


def _shard_like(value: Tensor, parameter: Tensor | None) -> Tensor:
    """Return this process's shard of a full tensor, or the tensor itself if its parameter is not sharded."""
    if not hasattr(parameter, 'placements') or getattr(value, 'shape', None) != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(device=parameter.device, dtype=parameter.dtype)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
