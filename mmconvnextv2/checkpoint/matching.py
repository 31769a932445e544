"""Refusal of a training checkpoint that belongs to another model."""
import re

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .content import unwrap


def check_weights(model: nn.Module, checkpoint: dict, source: str, whole: bool = True) -> None:
    """Compare a checkpoint's names and shapes with a model's.

    Args:
        model (nn.Module): The model that is to be loaded.
        checkpoint (dict): A training checkpoint, or its state dict.
        source (str): Where it came from, for the message.
        whole (bool): Whether every parameter must be there, or those of the backbone. Defaults to True.

    Raises:
        ValueError: Naming the parameters that are missing or of another shape.
    """
    weights = {re.sub('^module[.]', '', name): value for name, value in unwrap(checkpoint).items()}
    wanted = {name: value.shape for name, value in model.named_parameters() if whole or name.startswith('backbone.')}
    wrong = [name for name, shape in wanted.items() if getattr(weights.get(name), 'shape', None) != shape]
    if wrong:
        raise UserError(
            f'the checkpoint {source} is of another model: {len(wrong)} of {len(wanted)} weights '
            f'are missing or of another shape, {", ".join(wrong[:3])} ... Give a checkpoint that this config '
            'trained; weights for the backbone alone go into model.backbone.init_cfg.checkpoint.')


class MatchingWeightsHook(Hook):
    """Refuse a checkpoint of another model, which mmengine would load in part and go on.

    Args:
        whole (bool): Whether every parameter must be there, as for resuming and testing. Otherwise, for
            ``load_from``, those of the backbone: heads may differ in their classes.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Run :func:`check_weights`."""
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        if isinstance(model, nn.Module) and not is_model_wrapper(model):  # sharded parameters have other shapes
            check_weights(model, checkpoint, runner._load_from or '', self.whole)
