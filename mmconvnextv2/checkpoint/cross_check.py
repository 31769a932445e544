"""Run the weights of a layout in the library that the layout comes from: timm, Hugging Face transformers, mmpretrain.

Research code cannot be installed, so its layouts run in ``ConvNeXtV2``. So do layouts whose library is missing or
unusable; ``Outputs.library`` then says why.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils.compat import name_and_version
from .build import run_backbone
from .conversion import from_canonical, has_conv_stem, has_grn, read_arch, read_backbone, without_foreign_norms
from .strict import load_strictly


class Outputs(NamedTuple):
    """Outputs of a backbone: the last map (B, C, H / 32, W / 32), and the normalised mean over its sites (B, C), None
    for weights without a final norm."""

    library: str
    last_map: Tensor
    pooled: Tensor | None


class ArchSpec(NamedTuple):
    """Architecture that a library's model is built with."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    in_channels: int
    has_grn: bool
    has_norm: bool
    has_conv_mlp: bool


class Library(NamedTuple):
    """A library that can run a layout: its package, the module to import, and the function that runs weights."""

    package: str
    module: str
    run: Callable[[dict[str, Tensor], ArchSpec, Tensor], tuple[Tensor, Tensor | None]]


def run(weights: dict[str, Tensor], images: Tensor) -> Outputs:
    """Run weights of any layout in the layout's own library.

    Args:
        weights (dict): State dict of a backbone, with or without final norm; a head is ignored.
        images (Tensor): Normalised images of shape (B, C, H, W).

    Raises:
        ValueError: If the library's model has other names or shapes.
    """
    backbone = read_backbone(weights)
    return run_in_library(backbone.layout, backbone.weights, images)


@torch.no_grad()
def run_in_library(layout: str, weights: dict[str, Tensor], images: Tensor) -> Outputs:
    """Run canonical backbone weights in the library of a layout; see :func:`run`."""
    library = LIBRARIES.get(layout) or LIBRARIES.get(layout.partition('-')[0])
    if has_conv_stem(weights):
        reason = 'no library has its stem'
    else:
        reason = 'it has no library to install' if library is None else _why_not(library)
    has_norm = 'norm3.weight' in weights
    if library is None or reason:
        last_map, pooled = run_backbone(weights, images)
        return Outputs(f'ConvNeXtV2: {reason}', last_map, pooled if has_norm else None)
    depths, channels = read_arch(weights)
    grn = has_grn(weights)
    spec = ArchSpec(tuple(depths), tuple(channels), images.shape[1], grn, has_norm, layout == 'timm-conv')
    foreign = from_canonical(without_foreign_norms(weights, layout), layout)
    return Outputs(name_and_version(library.package), *library.run(foreign, spec, images))


def _why_not(library: Library) -> str:
    """Return why a library cannot be used; '' if it can."""
    package = library.package
    try:
        import_module(library.module)
    except ImportError as error:
        return f'{package} cannot be imported ({error})'
    except Exception as error:  # mmpretrain next to a transformers version that it does not know
        return f'{package} fails to import ({type(error).__name__}: {error})'
    if package == 'transformers' and version(package).startswith('4.51.'):
        return f'GRN of transformers {version(package)} takes a matrix norm, use another version'
    return ''


def _run_mmpretrain(weights: dict[str, Tensor], spec: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    from mmpretrain.models.backbones import ConvNeXt

    model = ConvNeXt(
        dict(depths=spec.depths, channels=spec.channels),
        spec.in_channels,
        use_grn=spec.has_grn,
        layer_scale_init_value=0.0 if spec.has_grn else 1.0,
        out_indices=(3,),
    )
    load_strictly(model, weights, CONVERTED, ('norm',))
    pooled, last_map = _run_and_watch(model, model.stages[3], images)
    return last_map, pooled[0] if spec.has_norm else None


def _run_timm(weights: dict[str, Tensor], spec: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(
        depths=spec.depths,
        dims=spec.channels,
        in_chans=spec.in_channels,
        num_classes=0,
        conv_mlp=spec.has_conv_mlp,
        use_grn=spec.has_grn,
        ls_init_value=None if spec.has_grn else 1.0,
    )
    load_strictly(model, weights, CONVERTED, ('head.norm.',))
    pooled, last_map = _run_and_watch(model, model.stages, images)
    return last_map, pooled if spec.has_norm else None


def _run_openclip(weights: dict[str, Tensor], spec: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Run the image tower, which is a model of timm."""
    return _run_timm({name.removeprefix('visual.trunk.'): value for name, value in weights.items()}, spec, images)


def _run_hugging_face(weights: dict[str, Tensor], spec: ArchSpec, images: Tensor) -> tuple[Tensor, Tensor | None]:
    import transformers

    kind = 'ConvNextV2' if spec.has_grn else 'ConvNext'
    config = getattr(transformers, f'{kind}Config')(
        depths=list(spec.depths),
        hidden_sizes=list(spec.channels),
        num_channels=spec.in_channels,
        layer_norm_eps=1e-6,  # only the final norm reads it; the default is 1e-12
    )
    model = getattr(transformers, f'{kind}Model')(config)
    load_strictly(model, weights, CONVERTED, ('layernorm.', 'hidden_states_norms.'))
    outputs = model.eval()(images)
    return outputs.last_hidden_state, outputs.pooler_output if 'layernorm.weight' in weights else None


def _run_hugging_face_dinov3(
    weights: dict[str, Tensor], spec: ArchSpec, images: Tensor
) -> tuple[Tensor, Tensor | None]:
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    model = DINOv3ConvNextModel(
        DINOv3ConvNextConfig(depths=list(spec.depths), hidden_sizes=list(spec.channels), num_channels=spec.in_channels)
    )
    inner = 'model.' if any(name.startswith('model.') for name in model.state_dict()) else ''  # transformers 5
    named = {inner * name.startswith('stages.') + name: value for name, value in weights.items()}
    load_strictly(model, named, CONVERTED, ('layer_norm.',))
    outputs, last_map = _run_and_watch(model, (model.model if inner else model).stages[-1], images)
    return last_map, outputs.pooler_output if spec.has_norm else None  # type: ignore[attr-defined]


CONVERTED = 'the converted file'
LIBRARIES = {  # by layout, or by the first word of its name
    'canonical': Library('mmpretrain', 'mmpretrain.models', _run_mmpretrain),
    'timm': Library('timm', 'timm.models.convnext', _run_timm),
    'openclip': Library('timm', 'timm.models.convnext', _run_openclip),
    'huggingface': Library('transformers', 'transformers.models.convnextv2.modeling_convnextv2', _run_hugging_face),
    'huggingface-dinov3': Library(
        'transformers', 'transformers.models.dinov3_convnext.modeling_dinov3_convnext', _run_hugging_face_dinov3
    ),
}


def _run_and_watch(model: nn.Module, watched: nn.Module, images: Tensor) -> tuple[Any, Tensor]:
    """Return a model's output, and the output of one of its modules."""
    model.eval()  # not chained: mmpretrain's eval() returns None
    seen = []
    handle = watched.register_forward_hook(lambda module, inputs, output: seen.append(output))
    output = model(images)
    handle.remove()
    return output, seen[0]


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value."""
    return ((expected - found).abs().max() / expected.abs().max()).item()
