"""Loading a pretrained backbone into a model of any framework: last, strictly, and never when a run resumes.

mmengine's ``Pretrained`` prints what did not fit and goes on, and knows canonical names only.
"""
import re
from typing import Dict, Tuple

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn

from ..safe_loading import load_file
from .content import unwrap
from .conversion import ANCHOR, Backbone, list_problems, read_backbone, some

LICENCE = 'The official ConvNeXt V2 weights are licensed CC BY-NC 4.0: no commercial use.'
CONVERTED_OFFICIAL = re.compile(  # published conversions of the official weights into other layouts
    r'download\.openmmlab\.com/.*convnext-v2|huggingface\.co/(facebook|timm)/convnextv2')


def load_backbone(model: nn.Module, path: str, weights: str = 'default') -> None:
    """Load a backbone from a file of any layout; strict, nothing is loaded unless everything fits.

    Args:
        model (nn.Module): A ``ConvNeXtV2``.
        path (str): Local path, ``http(s)://`` or another of mmengine's file backends.
        weights (str): ``'ema'`` for the moving average in the file, ``'raw'`` for the trained weights beside it; see
            :func:`unwrap`. Defaults to ``'default'``.

    Raises:
        ValueError: If a weight other than an output norm is missing, left over or of a wrong shape. The stem alone
            adapts to another number of input channels.
    """
    found, wanted = read_backbone(unwrap(load_file(path), weights)), model.state_dict()
    note = _adapt_stem(found.weights, wanted)
    norms = [key for key in found.weights if key not in wanted and key.startswith('norm')]
    problems = list_problems(
        {key: value for key, value in found.weights.items() if key not in norms},
        {key: value.shape for key, value in wanted.items() if key in found.weights or not key.startswith('norm')})
    if problems:
        raise ValueError(f'{path} ({found.dialect} layout) does not fit {type(model).__name__}: {problems}. Check arch '
                         'and response_norm.')
    model.load_state_dict({key: found.weights[key] for key in wanted if key in found.weights}, strict=False)
    print_log(f'{path}: {_tell(found, wanted, norms)}{note}{_licence(path, found.dialect)}', logger='current')


def _tell(found: Backbone, wanted: Dict[str, Tensor], norms: list) -> str:
    fresh = [key for key in wanted if key not in found.weights]
    dropped = norms + found.dropped
    return (f'{found.dialect} layout, {len(wanted) - len(fresh)} weights loaded, {len(fresh)} newly initialised '
            f'({some(fresh) or "none"}), {len(dropped)} dropped ({some(dropped) or "none"}). ')


def _licence(path: str, dialect: str) -> str:
    return LICENCE if dialect.startswith('official') or CONVERTED_OFFICIAL.search(str(path)) else ''


def _adapt_stem(loaded: Dict[str, Tensor], wanted: Dict[str, Tensor]) -> str:
    """Repeat and rescale the stem's kernel in ``loaded`` for another number of input channels; say so."""
    kernel, channels = loaded[ANCHOR], wanted[ANCHOR].shape[1]
    if kernel.shape[1] == channels:
        return ''
    repeats = torch.arange(channels) % kernel.shape[1]
    loaded[ANCHOR] = kernel[:, repeats] * (kernel.shape[1] / channels)
    return f'The stem was repeated from {kernel.shape[1]} to {channels} input channels and rescaled. '


@WEIGHT_INITIALIZERS.register_module()
class ConvNeXtV2Pretrained:
    """Initializer that loads a backbone: ``init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=PATH_OR_URL)``.

    Args:
        checkpoint (str): See :func:`load_backbone`.
        weights (str): ``'default'``, ``'ema'`` or ``'raw'``; see :func:`load_backbone`. Defaults to ``'default'``.
    """

    def __init__(self, checkpoint: str, weights: str = 'default') -> None:
        if not checkpoint:
            raise ValueError(f'checkpoint={checkpoint!r} of ConvNeXtV2Pretrained: give a path or a URL, or set '
                             'init_cfg=None to start from drawn weights')
        self.checkpoint = checkpoint
        self.weights = weights

    def __call__(self, module: nn.Module) -> None:
        load_backbone(module, self.checkpoint, self.weights)
        init_info = f'{type(self).__name__}: {self.checkpoint}'
        for record in getattr(module, '_params_init_info', {}).values():
            record['init_info'] = init_info


PRETRAINED: Tuple = ('ConvNeXtV2Pretrained', ConvNeXtV2Pretrained, 'Pretrained', PretrainedInit)


def skip_initial_weights_on_resume(runner: Runner) -> bool:
    """Keep a run that resumes from downloading or reading the weights that it once started from.

    mmengine initialises the model before it resumes. Call this between building the runner and ``runner.train()``; it
    takes the pretrained initializers off the model's modules when there is a checkpoint to resume from.

    Returns:
        bool: Whether the run resumes.
    """
    cfg = runner.cfg
    resumes = cfg.get('resume') and (cfg.get('load_from') or find_latest_checkpoint(runner.work_dir))
    if not resumes or not isinstance(runner.model, nn.Module):
        return bool(resumes)
    for module in runner.model.modules():
        given = getattr(module, 'init_cfg', None)
        if given:
            given = [given] if isinstance(given, dict) else given
            module.init_cfg = [cfg for cfg in given if cfg['type'] not in PRETRAINED]
    print_log('resuming: initial weights are not loaded', logger='current')
    return True
