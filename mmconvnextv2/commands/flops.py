"""Parameters and multiply-adds of a config's model at inference, counted on the meta device without weights.

Counts convolutions and matrix products, like the published numbers, with torch's ``FlopCounterMode`` (which counts a
multiply-add as two operations). Detectors with proposals are counted as by MMDetection 2 for the ConvNeXt papers: 1000
proposals through every box head and 100 detections through every mask head. UperNet's auxiliary head is left out, since
it is only used in training.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..utils.errors import UserError
from .arguments import add_config_options, load_config

PROPOSALS, DETECTIONS = 1000, 100
Costs = dict[str, tuple[int, float]]  # name: (parameters, multiply-adds)


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/get_flops.py``."""
    parser = ArgumentParser(
        description="Count the parameters and multiply-adds of a config's model at inference.",
        epilog='Example: python tools/get_flops.py configs/upernet/upernet_convnextv2-b_160k_ade20k-512x512.py '
        '--shape 512 2048',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='image size in pixels; default 800 1280 for detectors, 512 2048 for segmentors, 224 224 for classifiers',
    )
    add_config_options(parser)
    return parser.parse_args(argv)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the config's model on the meta device, without memory for weights, in evaluation mode."""
    model = Config(dict(model=cfg.model)).model  # a copy
    if 'backbone' in model:
        model.backbone.init_cfg = None
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
        model.data_preprocessor = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(model).eval()


def multiply_adds(function: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    """Call a function, and return its result and its multiply-adds."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = function(*inputs)
    return result, counter.get_total_flops() / 2


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_costs(model: nn.Module, height: int, width: int) -> Costs:
    """Return the costs of each part of a model for one image.

    Args:
        model (nn.Module): Model on the meta device, see :func:`build_on_meta`.
        height (int): Height of the image in pixels.
        width (int): Width of the image in pixels.

    Raises:
        ValueError: For pretraining algorithms, which have no inference.
    """
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    images = torch.empty(1, channels, height, width, device='meta')
    if hasattr(model, 'execution'):
        raise UserError(
            f'{type(model).__name__} has no inference: pass the config of a detector, segmentor or classifier'
        )
    if hasattr(model, 'roi_head'):
        return _count_proposals(model, images)
    features, work = multiply_adds(model.backbone, images)
    costs = {'backbone': (count_parameters(model.backbone), work)}
    _, whole = multiply_adds(lambda: model(images, mode='tensor'))
    trained_only = getattr(model, 'auxiliary_head', None)
    rest = count_parameters(model) - costs['backbone'][0]
    if trained_only is not None:
        costs['auxiliary head, in training'] = (count_parameters(trained_only), 0.0)
        rest -= count_parameters(trained_only)
    costs['neck and heads'] = (rest, whole - work)
    return costs


def _count_proposals(model: nn.Module, images: Tensor) -> Costs:
    """Return the costs of a two-stage detector, whose RoI heads are counted for fixed numbers of proposals."""
    features, backbone = multiply_adds(model.backbone, images)
    features, neck = multiply_adds(model.neck, features)
    _, rpn = multiply_adds(model.rpn_head, features)
    costs = {
        'backbone': (count_parameters(model.backbone), backbone),
        'neck': (count_parameters(model.neck), neck),
        'RPN': (count_parameters(model.rpn_head), rpn),
    }
    for name, title, number in (('bbox', 'box', PROPOSALS), ('mask', 'mask', DETECTIONS)):
        heads, extractors = (
            _as_list(getattr(model.roi_head, f'{name}_{kind}', None)) for kind in ('head', 'roi_extractor')
        )
        work = 0.0
        for head, extractor in zip(heads, extractors):
            side = extractor.roi_layers[0].output_size[0]
            work += multiply_adds(head, torch.empty(number, extractor.out_channels, side, side, device='meta'))[1]
        if heads:
            costs[f'{title} heads, {number}'] = (sum(map(count_parameters, heads)), work)
    return costs


def _as_list(modules: nn.Module | None) -> Sequence[nn.Module]:
    return [] if modules is None else list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def total(costs: Costs) -> tuple[int, float]:
    """Return the sum over all parts: (parameters, multiply-adds)."""
    return sum(parameters for parameters, _ in costs.values()), sum(work for _, work in costs.values())


def print_costs(args: Namespace) -> None:
    """Entry point of ``tools/get_flops.py``: print parameters and multiply-adds.

    Raises:
        ValueError: See :func:`count_costs`.
    """
    cfg = load_config(args.config, args.cfg_options)
    height, width = args.shape or dict(mmdet=(800, 1280), mmseg=(512, 2048), mmpretrain=(224, 224))[cfg.default_scope]
    costs = count_costs(build_on_meta(cfg), height, width)
    print(f'{height}x{width} pixels{"":18}parameters, M   multiply-adds, G')
    for name, (parameters, work) in [*costs.items(), ('total', total(costs))]:
        print(f'{name:30}{parameters / 1e6:16.2f}{work / 1e9:19.2f}')
