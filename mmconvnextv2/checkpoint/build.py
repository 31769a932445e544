"""Backbones from weights, and with them."""

import re
from typing import Any

from mmengine.model import initialize
from torch import Tensor

from ..models.convnext_v2 import INIT_CFG, ConvNeXtV2
from ..utils.errors import UserError
from .conversion import ANCHOR, read_arch
from .pretrained import load_backbone


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


def create_backbone(
    arch: str | dict = 'tiny', weights: str | None = None, in_channels: int = 3, **kwargs: Any
) -> ConvNeXtV2:
    """Create a backbone for code outside OpenMMLab, without a registry and without a log line.

    Args:
        arch (str | dict): A size of ``ARCHS``, such as ``'base'``, or depths and channels. Defaults to ``'tiny'``.
        weights (str, optional): Path or URL of weights in any known layout. Defaults to None, random weights.
        in_channels (int): Channels of the images; the stem of weights for another number is adapted. Defaults to 3.
        kwargs: Other arguments of :class:`ConvNeXtV2`, such as ``out_indices`` and ``drop_path_rate``.

    Returns:
        ConvNeXtV2: In evaluation mode. Called with images (B, C, H, W), normalised as in training (ImageNet's mean and
        deviation of RGB), it returns one map (B, C_i, H / s, W / s) per index in ``out_indices``, s = 4, 8, 16, 32.

    Raises:
        ValueError: If the size is unknown, or the weights are of another one.

    Examples:
        >>> backbone = mmconvnextv2.create_backbone('base', weights='convnextv2_base_1k_224_ema.pt')
        >>> [tuple(one.shape[1:]) for one in backbone(torch.rand(1, 3, 224, 224))]
        [(128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7)]
    """
    model = ConvNeXtV2(arch, in_channels, **kwargs)
    if weights is None:
        initialize(model, dict(INIT_CFG))  # init_weights would log every parameter
    else:
        load_backbone(model, weights, log=False)
    return model.eval()
