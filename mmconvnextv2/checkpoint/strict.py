"""Strict checks that a checkpoint belongs to a model: every weight, every shape."""

from torch import Tensor, nn

from ..utils.errors import UserError
from .whole_model import whole_model_weights


def check_weights(model: nn.Module, checkpoint: dict, source: str, whole: bool = True) -> None:
    """Compare a checkpoint's names and shapes with a model's.

    Args:
        model (nn.Module): The model to be loaded.
        checkpoint (dict): A checkpoint of a whole model, or its state dict; see
            :func:`~mmconvnextv2.checkpoint.whole_model.whole_model_weights`.
        source (str): Origin of the checkpoint, for the message.
        whole (bool): Whether all parameters are required, or only those of the backbone. Defaults to True.

    Raises:
        ValueError: Naming the parameters that are missing or of another shape.
    """
    weights = whole_model_weights(checkpoint)
    expected = {name: value.shape for name, value in model.named_parameters() if whole or name.startswith('backbone.')}
    wrong = [name for name, shape in expected.items() if getattr(weights.get(name), 'shape', None) != shape]
    if wrong:
        raise UserError(
            f'the checkpoint {source} is of another model: {len(wrong)} of {len(expected)} weights '
            f'are missing or of another shape, {", ".join(wrong[:3])} ... Give a checkpoint that this config '
            'trained; weights for the backbone alone go into model.backbone.init_cfg.checkpoint.'
        )


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: str, optional: tuple[str, ...] = ()) -> None:
    """Load a model of any library; nothing is loaded unless all weights fit.

    Args:
        model (nn.Module): The model to load.
        weights (dict[str, Tensor]): Weights under the model's names.
        source (str): Origin of the weights, for the message.
        optional (tuple[str]): Prefixes of the names that may be missing or unexpected, such as norms and heads after
            the last block. Defaults to none.

    Raises:
        ValueError: If other weights are missing, unexpected or of a wrong shape.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [
        name
        for name, shape in shapes.items()
        if not name.startswith(optional) and getattr(weights.get(name), 'shape', None) != shape
    ]
    extra = [name for name in weights if name not in shapes and not name.startswith(optional)]
    if wrong or extra:
        raise UserError(
            f'{source} does not fit {type(model).__name__}: {len(wrong)} weights are missing or of a wrong '
            f'shape ({", ".join(wrong[:3])}), {len(extra)} are not in the model ({", ".join(extra[:3])})'
        )
    model.load_state_dict({name: value for name, value in weights.items() if name in shapes}, strict=False)
