"""Check that a checkpoint belongs to a model: every weight, every shape."""

import re

from torch import nn

from ..utils.errors import UserError
from .state_dict import extract_state_dict


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
    weights = {re.sub('^module[.]', '', name): value for name, value in extract_state_dict(checkpoint).items()}
    wanted = {name: value.shape for name, value in model.named_parameters() if whole or name.startswith('backbone.')}
    wrong = [name for name, shape in wanted.items() if getattr(weights.get(name), 'shape', None) != shape]
    if wrong:
        raise UserError(
            f'the checkpoint {source} is of another model: {len(wrong)} of {len(wanted)} weights '
            f'are missing or of another shape, {", ".join(wrong[:3])} ... Give a checkpoint that this config '
            'trained; weights for the backbone alone go into model.backbone.init_cfg.checkpoint.'
        )
