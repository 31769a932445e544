"""Refusal of a training checkpoint that belongs to another model."""
import re

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .content import unwrap


class MatchingWeightsHook(Hook):
    """Refuse a checkpoint of another model, which mmengine would load in part and go on.

    Args:
        whole (bool): Whether every parameter must be there, as for resuming and testing. Otherwise, for
            ``load_from``, those of the backbone: heads may differ in their classes.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Raises:
            ValueError: Naming the parameters that are missing or of another shape.
        """
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        if not isinstance(model, nn.Module) or is_model_wrapper(model):
            return  # sharded parameters have other shapes
        weights = unwrap(checkpoint)
        weights = {re.sub('^module[.]', '', name): value for name, value in weights.items()}
        wanted = {name: value.shape for name, value in model.named_parameters()
                  if self.whole or name.startswith('backbone.')}
        wrong = [name for name, shape in wanted.items() if getattr(weights.get(name), 'shape', None) != shape]
        if wrong:
            raise ValueError(
                f'the checkpoint {runner._load_from or ""} is of another model: {len(wrong)} of {len(wanted)} weights '
                f'are missing or of another shape, {", ".join(wrong[:3])} ... Give a checkpoint that this config '
                'trained; weights for the backbone alone go into model.backbone.init_cfg.checkpoint.')
