"""Loading a pretrained backbone into a model of any framework: last, strictly, and never when a run resumes.

mmengine's ``Pretrained`` prints what did not fit and goes on, and knows canonical names only.
"""

import logging
import re

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from ..utils.errors import UserError
from .conversion import ANCHOR, Backbone, list_problems, preview, read_backbone
from .load import load_file
from .state_dict import extract_state_dict

LICENCE = 'The official ConvNeXt V2 weights are licensed CC BY-NC 4.0: no commercial use.'
CONVERTED_OFFICIAL = re.compile(  # published conversions of the official weights into other layouts
    r'download\.openmmlab\.com/.*convnext-v2|huggingface\.co/(facebook|timm)/convnextv2'
)


GRN_CHANGES = {  # asked for by ``grn``; each is told with what it costs in the paper's table 2 (f), ConvNeXt-Base
    None: '',
    'drop': "grn='drop': {} weights of GRN are left out, as asked (published: 78.8 top-1 against 84.6 with it). ",
    'add': "grn='add': {} weights of GRN were not pretrained and start as the identity, as asked (published: 80.6 "
    'top-1 against 84.6 with it in pretraining). ',
}


def load_backbone(
    model: nn.Module, path: str, weights: str = 'default', grn: str | None = None, log: bool = True
) -> None:
    """Load a backbone from a file of any layout; strict, nothing is loaded unless everything fits.

    Args:
        model (nn.Module): A ``ConvNeXtV2``.
        path (str): Local path, ``http(s)://`` or another of mmengine's file backends.
        weights (str): ``'ema'`` for the moving average in the file, ``'raw'`` for the trained weights beside it; see
            :func:`extract_state_dict`. Defaults to ``'default'``.
        grn (str, optional): ``'drop'`` loads weights with GRN into a model without, ``'add'`` weights without into a
            model whose GRN starts as the identity; the log warns. Defaults to None: both must agree.
        log (bool): Log what was loaded in one line. Defaults to True.

    Raises:
        ValueError: If a weight other than an output norm is missing, left over or of a wrong shape, or there is nothing
            for ``grn`` to change. The stem alone adapts to another number of input channels.
    """
    found, wanted = read_backbone(extract_state_dict(load_file(path), weights)), model.state_dict()
    note = _adapt_stem(found.weights, wanted)
    changed = _changed_grn(grn, found.weights, wanted)
    dropped = changed + [key for key in found.weights if key not in wanted and key.startswith('norm')]
    problems = list_problems(
        {key: value for key, value in found.weights.items() if key not in dropped},
        {
            key: value.shape
            for key, value in wanted.items()
            if key in found.weights or not key.startswith('norm') and key not in changed
        },
    )
    if problems:
        raise UserError(
            f'{path} ({found.layout} layout) does not fit {type(model).__name__}: {problems}. Check arch '
            "and response_norm; grn='add' or grn='drop' in init_cfg changes GRN on purpose."
        )
    model.load_state_dict({key: found.weights[key] for key in wanted if key in found.weights}, strict=False)
    dropped = [key for key in dropped if key in found.weights]
    if log:
        print_log(
            f'{path}: {_tell(found, wanted, dropped)}{GRN_CHANGES[grn].format(len(changed))}{note}'
            f'{_licence(path, found.layout)}',
            logger='current',
            level=logging.WARNING if grn else logging.INFO,
        )


def _changed_grn(change: str | None, loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Return the names of the response norm's weights that the file or the model alone may have.

    Raises:
        ValueError: If the change is unknown, or file and model are not such that it makes sense.
    """
    check_grn_change(change)
    in_file, in_model = ([key for key in weights if '.grn.' in key] for weights in (loaded, wanted))
    if change is None:
        return []
    if change == 'drop' and (in_model or not in_file):
        raise UserError(
            f"grn='drop': the file has {len(in_file)} weights of GRN and the model {len(in_model)}; set "
            'response_norm=None for the model, and leave grn out where the file has none'
        )
    if change == 'add' and (in_file or not in_model):
        raise UserError(
            f"grn='add': the file has {len(in_file)} weights of GRN and the model {len(in_model)}; set "
            "response_norm=dict(type='GRN') for the model, and leave grn out where the file has it"
        )
    other = [key for key in in_file + in_model if not key.endswith(('.grn.gamma', '.grn.beta'))]
    if other:
        raise UserError(f'grn={change!r} changes GRN alone, and {preview(other)} is of another response norm')
    odd = [key for key in in_model if wanted[key].any()]
    if odd:
        raise UserError(
            f"grn='add' starts as the identity, which {preview(odd)} is not: set "
            "response_norm=dict(type='GRN') for the model, newly built"
        )
    return in_file or in_model


def check_grn_change(change: str | None) -> None:
    """Raise ``ValueError`` for a change that is not known."""
    if change not in GRN_CHANGES:
        raise UserError(f'grn={change!r} is unknown: choose from {list(GRN_CHANGES)}')


def _tell(found: Backbone, wanted: dict[str, Tensor], dropped: list[str]) -> str:
    fresh = [key for key in wanted if key not in found.weights]
    dropped = dropped + found.dropped
    return (
        f'{found.layout} layout, {len(wanted) - len(fresh)} weights loaded, {len(fresh)} newly initialised '
        f'({preview(fresh) or "none"}), {len(dropped)} dropped ({preview(dropped) or "none"}). '
    )


def _licence(path: str, layout: str) -> str:
    return LICENCE if layout.startswith('official') or CONVERTED_OFFICIAL.search(str(path)) else ''


def _adapt_stem(loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Bring the stem's kernel in ``loaded`` to another number of input channels, as timm does; say so.

    One channel gets the sum over channels, which answers a grey image as the file's stem answers it in colour. More
    channels get the file's in turn, rescaled to the same sum of weights.
    """
    kernel, channels = loaded[ANCHOR], wanted[ANCHOR].shape[1]
    if kernel.shape[1] == channels:
        return ''
    if channels == 1:
        loaded[ANCHOR] = kernel.sum(1, keepdim=True)
        return f'The stem was summed from {kernel.shape[1]} to 1 input channel. '
    repeats = torch.arange(channels) % kernel.shape[1]
    loaded[ANCHOR] = kernel[:, repeats] * (kernel.shape[1] / channels)
    return f'The stem was repeated from {kernel.shape[1]} to {channels} input channels and rescaled. '


@WEIGHT_INITIALIZERS.register_module()
class ConvNeXtV2Pretrained:
    """Initializer that loads a backbone: ``init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=PATH_OR_URL)``.

    Args:
        checkpoint (str): See :func:`load_backbone`.
        weights (str): ``'default'``, ``'ema'`` or ``'raw'``; see :func:`load_backbone`. Defaults to ``'default'``.
        grn (str, optional): ``'add'`` or ``'drop'``; see :func:`load_backbone`. Defaults to None.

    Raises:
        ValueError: If there is no checkpoint, or ``grn`` is unknown.
    """

    def __init__(self, checkpoint: str, weights: str = 'default', grn: str | None = None) -> None:
        if not checkpoint:
            raise UserError(
                f'checkpoint={checkpoint!r} of ConvNeXtV2Pretrained: give a path or a URL, or set '
                'init_cfg=None to start from drawn weights'
            )
        self.checkpoint = checkpoint
        check_grn_change(grn)
        self.weights = weights
        self.grn = grn

    def __call__(self, module: nn.Module) -> None:
        load_backbone(module, self.checkpoint, self.weights, self.grn)
        init_info = f'{type(self).__name__}: {self.checkpoint}'
        for record in getattr(module, '_params_init_info', {}).values():
            record['init_info'] = init_info


PRETRAINED: tuple = ('ConvNeXtV2Pretrained', ConvNeXtV2Pretrained, 'Pretrained', PretrainedInit)
