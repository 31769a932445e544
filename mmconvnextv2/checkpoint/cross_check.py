"""A layout's weights in the library that the layout comes from: timm, Hugging Face transformers, mmpretrain.

Nothing of the official code can be installed, so its layouts run in ``ConvNeXtV2``; so do those whose library is absent
or unusable, and the answer says why.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.compat import name_and_version
from ..utils.errors import UserError
from . import detect_layout, read_arch, to_canonical
from .build import backbone_from_weights


class Outputs(NamedTuple):
    """What a model makes of images: the last map (B, C, H / 32, W / 32), and the normalised mean over its sites
    (B, C), None for weights without a final norm."""

    library: str
    last_map: Tensor
    pooled: Tensor | None


class ArchSpec(NamedTuple):
    """Of the model that a file's weights are of."""

    depths: list
    channels: list
    in_channels: int
    has_grn: bool
    has_norm: bool


@torch.no_grad()
def run(weights: dict[str, Tensor], images: Tensor) -> Outputs:
    """Run weights of any layout in its own library.

    Args:
        weights (dict): A state dict of a backbone, with or without final norm, without head.
        images (Tensor): (B, C, H, W).

    Raises:
        ValueError: If the library's model has other names or shapes.
    """
    layout = detect_layout(weights)
    canonical = to_canonical(weights)
    depths, channels = read_arch(canonical)
    shape = ArchSpec(
        depths, channels, images.shape[1], any('.grn.' in name for name in canonical), 'norm3.weight' in canonical
    )
    package, module, run_library = LIBRARIES.get(layout.partition('-')[0], (None, None, None))
    reason = _why_not(package, module) if package else 'it has no library to install'
    if reason:
        return Outputs(f'ConvNeXtV2: {reason}', *_run_ours(canonical, shape, images))
    return Outputs(name_and_version(package), *run_library(weights, shape, images))


def _why_not(package: str, module: str) -> str:
    """Say why a library cannot be used; '' if it can."""
    try:
        import_module(module)
    except ImportError as error:
        return f'{package} cannot be imported ({error})'
    except Exception as error:  # mmpretrain beside a transformers that it does not know
        return f'{package} fails to import ({type(error).__name__}: {error})'
    if package == 'transformers' and version(package).startswith('4.51.'):
        return f'GRN of transformers {version(package)} takes a matrix norm, use another version'
    return ''


def _run_ours(weights: dict[str, Tensor], shape: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    (last_map,) = backbone_from_weights(weights, out_norm=False).eval()(images)
    if not shape.has_norm:
        return last_map, None
    pooled = F.layer_norm(
        last_map.mean((2, 3)), last_map.shape[1:2], weights['norm3.weight'], weights['norm3.bias'], eps=1e-6
    )
    return last_map, pooled


def _run_mmpretrain(weights: dict[str, Tensor], shape: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    from mmpretrain.models.backbones import ConvNeXt

    weights = to_canonical(weights)
    model = ConvNeXt(
        dict(depths=shape.depths, channels=shape.channels),
        shape.in_channels,
        use_grn=shape.has_grn,
        layer_scale_init_value=0.0 if shape.has_grn else 1.0,
        out_indices=(3,),
    )
    _load(model, weights, ('norm',))
    pooled, last_map = _run_and_watch(model, model.stages[3], images)
    return last_map, pooled[0] if shape.has_norm else None


def _run_timm(weights: dict[str, Tensor], shape: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(
        depths=shape.depths,
        dims=shape.channels,
        in_chans=shape.in_channels,
        num_classes=0,
        conv_mlp=weights['stages.0.blocks.0.mlp.fc1.weight'].ndim == 4,
        use_grn=shape.has_grn,
        ls_init_value=None if shape.has_grn else 1.0,
    )
    _load(model, weights, ('head.norm.',))
    pooled, last_map = _run_and_watch(model, model.stages, images)
    return last_map, pooled if shape.has_norm else None


def _run_hugging_face(weights: dict[str, Tensor], shape: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    from transformers import ConvNextV2Config, ConvNextV2Model

    weights = {name.partition('convnextv2.')[2] or name: value for name, value in weights.items()}
    config = ConvNextV2Config(
        depths=shape.depths, hidden_sizes=shape.channels, num_channels=shape.in_channels, layer_norm_eps=1e-6
    )  # of the final norm alone; its default is 1e-12
    model = ConvNextV2Model(config)
    _load(model, weights, ('layernorm.', 'hidden_states_norms.'))
    outputs = model.eval()(images)
    return outputs.last_hidden_state, outputs.pooler_output if 'layernorm.weight' in weights else None


LIBRARIES: dict[str, tuple[str, str, Callable]] = {  # package, module to import, how to run it
    'canonical': ('mmpretrain', 'mmpretrain.models', _run_mmpretrain),
    'timm': ('timm', 'timm.models.convnext', _run_timm),
    'huggingface': ('transformers', 'transformers.models.convnextv2.modeling_convnextv2', _run_hugging_face),
}


def _load(model: nn.Module, weights: dict[str, Tensor], optional: tuple[str, ...]) -> None:
    missing, extra = model.load_state_dict(weights, strict=False)
    lost = [name for name in (*missing, *extra) if not name.startswith(optional)]
    if lost:
        raise UserError(
            f'{type(model).__module__}.{type(model).__name__} and the file disagree on {len(lost)} names: '
            f'{", ".join(lost[:10])}'
        )


def _run_and_watch(model: nn.Module, watched: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a model's output, and that of one of its modules."""
    model.eval()  # mmpretrain returns None from it
    seen = []
    handle = watched.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = model(images)
    handle.remove()
    return output, seen[0]
