"""Build the backbone that weights belong to."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.convnext_v2 import ConvNeXtV2
from ..utils.errors import UserError
from .conversion import ANCHOR, has_layer_scale, read_arch, read_stem


def backbone_from_weights(weights: dict[str, Tensor], out_norm: bool = True) -> ConvNeXtV2:
    """Build the ``ConvNeXtV2`` that canonical weights belong to, and load them strictly.

    Args:
        weights (dict[str, Tensor]): Canonical names, see :func:`mmconvnextv2.checkpoint.to_canonical`.
        out_norm (bool): Keep the output norms, and return the maps of the stages that have one. If False, or if the
            weights have no output norm, return the last map without a norm. Defaults to True.

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
        layer_scale_init_value=float(has_layer_scale(weights)),
        stem=read_stem(weights),
    )
    model.load_state_dict({key: value for key, value in weights.items() if stages or not key.startswith('norm')})
    return model


@torch.no_grad()
def run_backbone(weights: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Run canonical weights in ``ConvNeXtV2``.

    Args:
        weights (dict[str, Tensor]): See :func:`backbone_from_weights`.
        images (Tensor): Normalised images of shape (B, C, H, W).

    Returns:
        tuple[Tensor, Tensor]: The last map without its norm, of shape (B, C, H / 32, W / 32), and the normalised mean
        over its sites, of shape (B, C). Without a final norm in the weights, the normalisation has no affine part.
    """
    (last_map,) = backbone_from_weights(weights, out_norm=False).eval()(images)
    pooled = F.layer_norm(
        last_map.mean((2, 3)),
        last_map.shape[1:2],
        weights.get('norm3.weight'),
        weights.get('norm3.bias'),
        eps=1e-6,
    )
    return last_map, pooled
