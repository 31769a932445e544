"""bfloat16 training on any device; mmengine's ``AmpOptimWrapper`` refuses a CPU and carries a loss scaler."""
from contextlib import contextmanager
from typing import Iterator

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Run the forward under bfloat16 autocast. The range of bfloat16 needs no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward, inside mmengine's own context (gradient accumulation under DDP)."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield
