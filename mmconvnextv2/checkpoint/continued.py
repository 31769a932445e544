"""Start of continued pretraining: an FCMAE from a backbone of any layout, with its decoder where the file has one."""

from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from .conversion import pretraining_to_canonical, preview, read_backbone
from .load import load_file
from .pretrained import ConvNeXtV2Pretrained, load_into
from .state_dict import extract_state_dict
from .whole_model import with_canonical_backbone

DECODER = ('neck.', 'head.')


@WEIGHT_INITIALIZERS.register_module()
class FCMAEPretrained:
    """Initializer of an ``FCMAE``: ``model.init_cfg=dict(type='FCMAEPretrained', checkpoint=...)``.

    The encoder is loaded strictly, from any layout that ``ConvNeXtV2Pretrained`` reads; its stem adapts to other input
    channels. The decoder is loaded where the file has one of the same shape, as checkpoints of this package and of the
    official pretraining script have; released files and classifiers have none. A prediction layer for fewer channels is
    repeated channel by channel. The log says what was loaded, changed and newly initialised.

    Args:
        checkpoint (str): Path, URL or name of a public model.
        weights (str): ``'default'``, ``'ema'`` or ``'raw'``; see :func:`load_backbone`. Defaults to ``'default'``.

    Raises:
        ValueError: If the encoder does not fit.
    """

    def __init__(self, checkpoint: str, weights: str = 'default') -> None:
        self.checkpoint, self.weights = checkpoint, weights

    def __call__(self, model: nn.Module) -> None:
        backbone, decoder = _read(self.checkpoint, self.weights)
        load_into(model.get_submodule('backbone'), read_backbone(backbone), self.checkpoint)
        print_log(f'{self.checkpoint}: {load_decoder(model, decoder)}', logger='current')


# Initializers that load weights, as config types
PRETRAINED: tuple = (
    *(kind for one in (ConvNeXtV2Pretrained, FCMAEPretrained) for kind in (one, one.__name__)),
    PretrainedInit,
    'Pretrained',
)


def _read(path: str, weights: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a file's backbone, and those of a decoder under our names."""
    state = with_canonical_backbone(extract_state_dict(load_file(path), weights))
    if 'mask_token' in state and any(name.startswith('encoder.') for name in state):
        state = pretraining_to_canonical(state)
    backbone = {name: value for name, value in state.items() if not name.startswith(DECODER)}
    if 'neck.mask_token' not in state or 'head.pred.weight' not in state:  # a detector, a classifier, or no head at all
        return backbone, {}
    return backbone, {name: value for name, value in state.items() if name.startswith(DECODER)}


def load_decoder(model: nn.Module, decoder: dict[str, Tensor]) -> str:
    """Load the decoder and prediction layer of an ``FCMAE`` where they fit, and return in words what was done.

    Args:
        model (nn.Module): ``FCMAE``.
        decoder (dict[str, Tensor]): Weights by name, ``neck.*`` and ``head.*``; may be empty.
    """
    expected = {name: value for name, value in model.state_dict().items() if name.startswith(DECODER)}
    if not decoder:
        return 'the file has no decoder, which is newly initialised'
    parts: Any = model
    decoder, note = _with_channels(decoder, parts.head.stride**2, parts.backbone.in_channels)
    wrong = [
        name
        for name in sorted({*decoder, *expected})
        if name not in decoder or name not in expected or decoder[name].shape != expected[name].shape
    ]
    if wrong:
        return f"the file's decoder is another one ({preview(wrong)}), so the decoder is newly initialised"
    model.load_state_dict(decoder, strict=False)
    return f'the decoder was loaded, too{note}'


def _with_channels(decoder: dict[str, Tensor], num_pixels: int, channels: int) -> tuple[dict[str, Tensor], str]:
    """Return the weights with a prediction layer for a number of image channels, and a note for the log.

    Its outputs are pixels of a cell or site, channels last. As in the stem, more channels repeat those of the file in
    turn, so that each starts from the prediction of one that the model knows; a single channel is their mean.
    """
    weight = decoder['head.pred.weight']
    old = weight.shape[0] // num_pixels
    if old == channels or weight.shape[0] % num_pixels:
        return decoder, ''
    changed = dict(decoder)
    for name in ('head.pred.weight', 'head.pred.bias'):
        by_channel = decoder[name].unflatten(0, (num_pixels, old))
        if channels == 1:
            by_channel = by_channel.mean(1, keepdim=True)
        else:
            by_channel = by_channel[:, torch.arange(channels) % old]
        changed[name] = by_channel.flatten(0, 1)
    how = 'averaged' if channels == 1 else 'repeated'
    return changed, f'; its predictions were {how} from {old} to {channels} image channels'
