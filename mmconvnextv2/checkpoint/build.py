"""The backbone that weights are of."""

import re

from torch import Tensor

from ..models.convnext_v2 import ConvNeXtV2
from ..utils.errors import UserError
from .conversion import ANCHOR, read_arch


def backbone_from_weights(weights: dict[str, Tensor], out_norm: bool = True) -> ConvNeXtV2:
    """Build the ``ConvNeXtV2`` that canonical weights are of, and load them strictly.

    Args:
        weights (dict[str, Tensor]): Canonical names, see :func:`mmconvnextv2.checkpoint.to_canonical`.
        out_norm (bool): Keep the output norms, and return the maps of the stages that have one. If False, or if the
            weights have no output norm, return the last map without one. Defaults to True.

    Raises:
        ValueError: If the weights hold another response norm than GRN, or are incomplete.
    """
    norms = {key.rpartition('.')[2] for key in weights if '.grn.' in key}
    if norms - {'gamma', 'beta'}:
        raise UserError(
            f'these weights hold another response norm than GRN ({", ".join(sorted(norms))}): only a config says which'
        )
    stages = sorted({int(match[1]) for match in (re.match(r'norm(\d)\.', key) for key in weights) if match})
    stages = stages if out_norm else []
    depths, channels = read_arch(weights)
    model = ConvNeXtV2(
        dict(depths=depths, channels=channels),
        weights[ANCHOR].shape[1],
        out_indices=stages or (3,),
        response_norm=dict(type='GRN') if norms else None,
        out_norm=bool(stages),
        layer_scale_init_value=float(any(re.search(r'\.\d+\.gamma$', key) for key in weights)),
    )
    model.load_state_dict({key: value for key, value in weights.items() if stages or not key.startswith('norm')})
    return model
